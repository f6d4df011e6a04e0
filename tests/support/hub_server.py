"""A Hub for the tests: a real HTTP server on loopback, in a process of its own.

    python hub_server.py ROOT       prints its address and serves until it is killed

It keeps repositories (commits, branches, LFS objects) as the Hub does, as far as huggingface_hub asks for them: create,
validate-yaml, preupload, LFS batch and upload, commit, list, download, refs, squash, delete LFS files. The token
`hf_dummy` may write under `me/`. For faults: POST /_faults with a list of {"method", "path" (a part of it), "status" or
"cut": true, "times"}; GET /_requests lists what was asked, GET /_repo/ID tells what a repository holds.
"""

import base64
import json
import os
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

from hub_store import Hub, Refused, front_matter_errors

TOKEN, USER = "hf_dummy", "me"
LARGE = (".safetensors", ".bin", ".pt", ".parquet", ".png")
LOCK = threading.RLock()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub = None

    def log_message(self, *args):
        pass

    def answer(self, status=200, body=b"", headers=None, kind="application/json"):
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        headers = {"Content-Type": kind, "Content-Length": str(len(content)), **(headers or {})}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def serve(self):
        path = unquote(urlsplit(self.path).path)
        control = path.startswith("/_faults") or path.startswith("/_re")
        with LOCK:
            if not control:
                self.hub.requests.append([self.command, path])
            for fault in () if control else self.hub.faults:
                if fault["method"] == self.command and fault["path"] in path and fault["times"] > 0:
                    fault["times"] -= 1
                    if fault.get("cut"):  # in the middle of what is being sent
                        self.rfile.read(min(100, int(self.headers.get("Content-Length", 0))))
                        self.close_connection = True
                        self.connection.close()
                        return
                    self.body()
                    self.answer(fault["status"], {"error": fault.get("message", "refused")})
                    return
            try:
                self.route(path)
            except Refused as refused:
                headers = {"X-Error-Message": str(refused)}
                if refused.code:
                    headers["X-Error-Code"] = refused.code
                self.answer(refused.status, {"error": str(refused)}, headers)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = serve

    def body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def may_write(self, name):
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise Refused(401, "Invalid credentials in Authorization header")
        if not name.startswith(f"{USER}/"):
            raise Refused(403, f"You don't have the rights to write to {name}")

    def route(self, path):
        hub, body = self.hub, self.body() if self.command in ("POST", "PUT") else b""
        if path == "/_faults":
            hub.faults = json.loads(body)
            return self.answer()
        if path == "/_requests":
            return self.answer(200, hub.requests)
        if path.startswith("/_repo/"):
            return self.answer(200, hub.repos.get(path.removeprefix("/_repo/")))
        if path == "/api/validate-yaml":
            errors = front_matter_errors(json.loads(body)["content"])
            return self.answer(400 if errors else 200, {"errors": errors, "warnings": []})
        if path == "/api/repos/create":
            asked = json.loads(body)
            kind = asked.get("type") or "model"
            name = f"{asked.get('organization') or USER}/{asked['name']}"
            self.may_write(name)
            prefix = "" if kind == "model" else f"{kind}s/"
            made = {"url": f"{self.base()}/{prefix}{name}", "name": name, "id": name}
            if prefix + name in hub.repos:
                return self.answer(409, {"error": "You already created this model repo", **made})
            hub.create(kind, prefix + name, bool(asked.get("private") or asked.get("visibility") == "private"))
            return self.answer(200, made)
        if path.startswith("/_lfs/") and self.command == "PUT":
            if hub.store(body) != path.removeprefix("/_lfs/"):
                raise Refused(400, "The content is not what was announced")
            return self.answer()
        if path.startswith("/_lfs/"):
            return self.answer()
        if found := re.fullmatch(r"/(?P<id>.+)\.git/info/lfs/objects/batch", path):
            return self.lfs_batch(found["id"], json.loads(body))
        if found := re.fullmatch(r"/(?P<id>(datasets/)?[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", path):
            return self.resolve(**found.groupdict())
        if found := re.fullmatch(r"/api/(?P<kind>models|datasets)/(?P<id>[^/]+/[^/]+)(/(?P<verb>.+))?", path):
            key = found["id"] if found["kind"] == "models" else f"datasets/{found['id']}"
            if self.command == "DELETE" and (found["verb"] or "").startswith("tag/"):
                self.may_write(key)
                return self.api(key, hub.repo(key), "tag-delete", found["verb"].removeprefix("tag/"), b"")
            verb, _, rest = (found["verb"] or "revision/main").partition("/")
            return self.api(key, hub.repo(key), verb, rest, body)
        raise Refused(404, f"no route {self.command} {path}", "EntryNotFound")

    def base(self):
        return f"http://{self.headers['Host']}"

    def lfs_batch(self, key, asked):
        self.may_write(key.removeprefix("datasets/"))
        objects = []
        for entry in asked["objects"]:
            known = os.path.exists(self.hub.blob(entry["oid"]))
            href = {"href": f"{self.base()}/_lfs/{entry['oid']}"}
            objects.append({**entry, **({} if known else {"actions": {"upload": href, "verify": href}})})
        self.answer(200, {"transfer": "basic", "objects": objects}, kind="application/vnd.git-lfs+json")

    def resolve(self, id, revision, path):  # noqa: A002
        repo = self.hub.repo(id)
        commit, files = self.hub.tree(repo, revision)
        if path not in files:
            raise Refused(404, f"No file {path}", "EntryNotFound")
        with open(self.hub.blob(files[path]), "rb") as file:
            content = file.read()
        headers = {"ETag": f'"{files[path]}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        status = 200
        if found := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            first, last = int(found[1]), min(int(found[2] or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            content, status = content[first : last + 1], 206
        self.answer(status, content, headers, "application/octet-stream")

    def entry(self, name, oid):
        size = os.path.getsize(self.hub.blob(oid))
        lfs = {"lfs": {"oid": oid, "size": size, "pointerSize": 134}} if name.endswith(LARGE) else {}
        return {"type": "file", "path": name, "size": size, "oid": oid[:40], **lfs}

    def api(self, key, repo, verb, rest, body):
        hub = self.hub
        writing = {"preupload", "commit", "super-squash", "tag", "branch"} | (
            {"lfs-files"} if self.command == "POST" else set()
        )
        if verb in writing:
            self.may_write(key.removeprefix("datasets/"))
        if verb == "revision":
            commit, files = hub.tree(repo, rest)
            siblings = [{"rfilename": name} for name in sorted(files)]
            return self.answer(
                200, {"id": key.removeprefix("datasets/"), "sha": commit, "siblings": siblings, "tags": [],
                      "private": repo["private"], "modelId": key, "disabled": False, "downloads": 0, "likes": 0,
                      "lastModified": "2026-01-01T00:00:00.000Z"},
            )  # fmt: skip
        if verb == "tree":
            named = re.match(r"refs/\w+/[^/]+", rest)  # others have no slash in their names here
            revision, _, folder = (named[0], "", rest[len(named[0]) + 1 :]) if named else rest.partition("/")
            files = hub.tree(repo, revision)[1]
            inside = [name for name in sorted(files) if not folder or name.startswith(f"{folder}/")]
            if folder and not inside:
                raise Refused(404, f"No folder {folder}", "EntryNotFound")
            return self.answer(200, [self.entry(name, files[name]) for name in inside])
        if verb == "paths-info":
            files = hub.tree(repo, rest)[1]
            asked = json.loads(body)["paths"] if body[:1] == b"{" else re.findall(r"paths=([^&]+)", unquote(str(body)))
            return self.answer(200, [self.entry(name, files[name]) for name in asked if name in files])
        if verb == "refs":

            def refs(kind):
                found = repo["refs"].items()
                return [{"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": c} for n, c in found
                        if (kind == "tags") == (n in repo.get("tags", []))]  # fmt: skip

            return self.answer(
                200, {"branches": refs("heads"), "tags": refs("tags"), "converts": [], "pullRequests": []}
            )
        if verb == "commits":
            commits = hub.history(repo, hub.tree(repo, rest)[0])
            return self.answer(200, [{"id": c, "title": repo["commits"][c]["title"], "message": "", "authors": [],
                                      "date": "2026-01-01T00:00:00.000Z"} for c in commits])  # fmt: skip
        if verb == "preupload":
            files = json.loads(body)["files"]
            return self.answer(
                200, {"files": [{"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(LARGE) else "regular",
                                 "shouldIgnore": False} for f in files]},
            )  # fmt: skip
        if verb == "commit":
            return self.commit(key, repo, rest, body)
        if verb == "branch":
            if rest in repo["refs"]:
                raise Refused(409, f"There is a branch {rest} already")
            repo["refs"][rest] = repo["refs"]["main"]
            return self.answer()
        if verb == "tag":
            repo["refs"][json.loads(body)["tag"]] = hub.tree(repo, rest)[0]
            repo.setdefault("tags", []).append(json.loads(body)["tag"])
            return self.answer()
        if verb == "tag-delete":
            del repo["refs"][rest]
            repo["tags"].remove(rest)
            return self.answer()
        if verb == "super-squash":
            title = json.loads(body).get("message", "squash") if body else "squash"
            hub.commit(repo, rest, title, dict(hub.tree(repo, rest)[1]), None)
            kept = {c for commit in repo["refs"].values() for c in hub.history(repo, commit)}
            repo["commits"] = {c: value for c, value in repo["commits"].items() if c in kept}
            return self.answer(200, {})
        if verb == "lfs-files" and self.command == "GET":
            return self.answer(
                200, [{"filename": name, "fileOid": oid[:40], "oid": oid, "ref": "main",
                       "size": os.path.getsize(hub.blob(oid)), "pushedAt": "2026-01-01T00:00:00.000Z"}
                      for oid, name in repo["pushed"].items()],
            )  # fmt: skip
        if verb == "lfs-files":
            gone = json.loads(body)["deletions"]["sha"]
            for oid in [oid for oid in repo["pushed"] if oid[:40] in gone]:
                del repo["pushed"][oid]
                os.remove(hub.blob(oid))
            return self.answer(200, {})
        raise Refused(404, f"no verb {verb}", "EntryNotFound")

    def commit(self, key, repo, branch, body):
        hub = self.hub
        parent, files = hub.tree(repo, branch)
        files, title = dict(files), ""
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                title = value["summary"]
            elif entry["key"] == "file":
                files[value["path"]] = hub.store(base64.b64decode(value["content"]))
            elif entry["key"] == "lfsFile":
                if not os.path.exists(hub.blob(value["oid"])):
                    raise Refused(400, f"LFS object {value['oid']} was not uploaded")
                files[value["path"]] = value["oid"]
                repo["pushed"][value["oid"]] = value["path"]
            elif entry["key"] == "deletedFile":
                files.pop(value["path"], None)
        commit = hub.commit(repo, branch, title, files, parent)
        self.answer(200, {"commitUrl": f"{self.base()}/{key}/commit/{commit}", "commitOid": commit, "success": True})


if __name__ == "__main__":
    Handler.hub = Hub(sys.argv[1])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
    server.serve_forever()
