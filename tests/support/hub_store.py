"""What the Hub of `hub_server.py` keeps: repositories with commits, branches and tags, and content by its hash."""

import hashlib
import os
import re

import yaml


class Refused(Exception):
    def __init__(self, status, message, code=None):
        super().__init__(message)
        self.status, self.code = status, code


class Hub:
    def __init__(self, root):
        self.root, self.repos, self.faults, self.requests = root, {}, [], []
        os.makedirs(root, exist_ok=True)

    def blob(self, oid):
        return os.path.join(self.root, oid)

    def store(self, content):
        oid = hashlib.sha256(content).hexdigest()
        with open(self.blob(oid), "wb") as file:
            file.write(content)
        return oid

    def repo(self, key):
        if key not in self.repos:
            raise Refused(404, "Repository not found", "RepoNotFound")
        return self.repos[key]

    def tree(self, repo, revision):
        revision = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
        commit = repo["refs"].get(revision, revision)
        if commit not in repo["commits"]:
            raise Refused(404, f"No revision {revision}", "RevisionNotFound")
        return commit, repo["commits"][commit]["files"]

    def create(self, kind, key, private):
        self.repos[key] = {"kind": kind, "private": private, "commits": {}, "refs": {}, "pushed": {}}
        self.commit(self.repos[key], "main", "initial commit", {}, None)

    def commit(self, repo, branch, title, files, parent):
        identifier = hashlib.sha1(f"{title}{parent}{sorted(files.items())}{len(repo['commits'])}".encode()).hexdigest()
        repo["commits"][identifier] = {"title": title, "files": files, "parent": parent}
        repo["refs"][branch] = identifier
        return identifier

    def history(self, repo, commit):
        while commit is not None:
            yield commit
            commit = repo["commits"][commit]["parent"]


def front_matter_errors(text):
    """What the Hub says of a card's metadata, in short."""
    found = re.match(r"---\n(.*?)\n---", text, re.S)
    data = yaml.safe_load(found[1]) if found else {}
    errors = []
    for key in ("base_model", "datasets"):
        values = data.get(key) or []
        for value in [values] if isinstance(values, str) else values:
            if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(value)):
                errors.append({"message": f'"{key}" must be an id on the Hub, got {value!r}'})
    for entry in data.get("model-index") or []:
        for result in entry["results"]:
            good = result.get("task", {}).get("type") and {"name", "type"} <= result.get("dataset", {}).keys()
            if not good or not all({"type", "value"} <= metric.keys() for metric in result["metrics"]):
                errors.append({"message": f'"model-index" is not complete: {result}'})
    return errors
