"""Pushes to the Hub of `hub_server.py`, run in a process of its own: its address is read on import.

python hub_job.py JOB FOLDER      prints what it found as JSON on the last line
"""

import io
import json
import logging
import os
import sys
import time
import urllib.request
import warnings

import huggingface_hub
import torch
import transformers
from parts import images, timm_resnet
from torch.utils.data import Subset

import hf_sharp_unlearn
from hf_sharp_unlearn import UnlearningArguments, UnlearningTrainer, split_forget
from hf_sharp_unlearn.commands import cli
from hf_sharp_unlearn.sharing.hub import PushError

HUB = os.environ["HF_ENDPOINT"]
sleep = time.sleep
time.sleep = lambda seconds: sleep(min(seconds, 0.01))  # huggingface_hub waits up to 8 s before each of 5 new attempts


def ask(path, body=None):
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(HUB + path, data)) as answer:
        return json.loads(answer.read() or "null")


def trainer(folder, model=None, data=None, method="neggrad", **arguments):
    forget, retain = split_forget(images(19) if data is None else data, [1, 4, 7])
    settings = {"max_steps": 2, "save_steps": 1, "use_cpu": True, "disable_tqdm": True, "logging_steps": 1}
    processor = arguments.pop("processing_class", None)
    collator = arguments.pop("data_collator", None)
    return UnlearningTrainer(
        timm_resnet() if model is None else model,
        UnlearningArguments(folder, **{**settings, **arguments}),
        method=method,
        forget_dataset=forget,
        retain_dataset=retain,
        eval_dataset=Subset(images(8, seed=3), range(8)) if data is None else None,
        processing_class=processor,
        data_collator=collator,
    )


def equal(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def round_trip(folder):
    """timm, a Hub vision model with its processor, and a LoRA: pushed and read back."""
    found = {}
    timm_run = trainer(f"{folder}/timm", method="sharp_minmax", hub_model_id="me/timm-model", hub_private_repo=True)
    timm_run.train()
    timm_run.evaluate_unlearning(timm_resnet(seed=1))
    tags = ["mine"]
    timm_run.push_to_hub(tags=tags, license="mit", dataset_tags="me/digits", language="en")
    back = transformers.AutoModelForImageClassification.from_pretrained("me/timm-model")
    found["timm"] = equal(timm_run.model, back)
    import timm

    native = timm.create_model("hf-hub:me/timm-model", pretrained=True)
    found["through timm"] = equal(timm_run.model.timm_model, native)
    processor = transformers.AutoImageProcessor.from_pretrained("me/timm-model")
    found["processor"] = type(processor).__name__
    found["tags"] = tags, timm_resnet().model_tags, native.__class__.__name__
    found["private"] = ask("/_repo/me/timm-model")["private"]

    config = transformers.ResNetConfig(num_channels=1, embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1],
                                       layer_type="basic", num_labels=3)  # fmt: skip
    resnet = transformers.ResNetForImageClassification(config)
    kept = transformers.ViTImageProcessor(size={"height": 8, "width": 8})
    resnet_run = trainer(f"{folder}/resnet", resnet, hub_model_id="me/resnet", processing_class=kept)
    resnet_run.train()
    resnet_run.push_to_hub()
    found["resnet"] = equal(resnet, transformers.AutoModelForImageClassification.from_pretrained("me/resnet"))
    found["size"] = transformers.AutoImageProcessor.from_pretrained("me/resnet").size["height"]

    # A model from the Hub, made to forget and pushed under another name: its card says where it came from.
    second = trainer(f"{folder}/second", transformers.AutoModelForImageClassification.from_pretrained("me/timm-model"))
    second.train()
    second.push_to_hub()
    found["second"] = transformers.AutoConfig.from_pretrained("me/second").architecture

    import peft

    llama = transformers.LlamaConfig(vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                                     num_attention_heads=2, num_key_value_heads=2)  # fmt: skip
    base = transformers.LlamaForCausalLM(llama)
    base.push_to_hub("me/base")
    base = transformers.LlamaForCausalLM.from_pretrained("me/base")
    lora = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], init_lora_weights=False)
    tokens = [{"input_ids": torch.tensor([i, 1, 2]), "labels": torch.tensor([i, 1, 2])} for i in range(19)]
    lora_run = trainer(f"{folder}/lora", peft.get_peft_model(base, lora), tokens, hub_model_id="me/lora")
    lora_run.train()
    lora_run.push_to_hub()
    again = peft.AutoPeftModelForCausalLM.from_pretrained("me/lora")
    found["lora"] = all(torch.equal(a, b) for a, b in zip(lora_run.model.parameters(), again.parameters(), strict=True))
    return found


def strategies(folder):
    """push_to_hub=True with every hub_strategy: what is there afterwards."""
    found = {}
    best = {
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "eval_strategy": "steps",
        "eval_steps": 1,
    }
    for strategy in ("end", "every_save", "checkpoint", "all_checkpoints"):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run = trainer(f"{folder}/{strategy}", method="sharp_minmax", push_to_hub=True, hub_strategy=strategy,
                          hub_always_push=True, hub_token="hf_dummy", **best)  # fmt: skip
        run.train()
        said = [str(w.message) for w in caught if "hub_strategy" in str(w.message)]
        before = _files(f"me/{strategy}")
        run.save_model()
        found[strategy] = {"warned": said, "trained": before, "saved": _files(f"me/{strategy}")}
        found[strategy]["arguments"] = _strings(f"{folder}/{strategy}", run)
        found[strategy]["searched"] = _search(f"me/{strategy}", folder)
        found[strategy]["best"] = [os.path.dirname(run.state.best_model_checkpoint) == f"{folder}/{strategy}",
                                   _best_checkpoints(f"me/{strategy}")]  # fmt: skip
    return found


def _best_checkpoints(repo):
    """What the trainer states on the Hub call the best checkpoint."""
    state, found = ask(f"/_repo/{repo}"), set()
    for name, oid in state["commits"][state["refs"]["main"]]["files"].items():
        if name.endswith("trainer_state.json"):
            with open(os.path.join(os.environ["HUB_BLOBS"], oid)) as file:
                found.add(json.load(file)["best_model_checkpoint"])
    return sorted(found)


def _files(repo):
    state = ask(f"/_repo/{repo}")
    return sorted(state["commits"][state["refs"]["main"]]["files"])


def _strings(folder, run):
    """The tokens and paths in a training_args.bin, and what it loads as."""
    path = f"{folder}/training_args.bin"
    with open(path, "rb") as file:
        content = file.read()
    leaks = [word for word in ("hf_dummy", folder, os.path.expanduser("~")) if word.encode() in content]
    args = torch.load(path, weights_only=False)
    return {"leaks": leaks, "class": type(args).__name__, "output_dir": args.output_dir, "steps": args.max_steps,
            "own": run.args.output_dir == folder and run.args.hub_token == "hf_dummy"}  # fmt: skip


def faults(folder):
    """Each fault: what is said, whether the local model is whole, and whether a second try completes."""
    found = {}
    once = {"times": 1}
    cut = [{"method": "PUT", "path": "/_lfs/", "cut": True, "times": 100}]
    for name, faults_, repo, token in (
        ("401", [], "me/unauthorised", "hf_wrong"),
        ("403", [], "others/forbidden", "hf_dummy"),
        ("409", [{"method": "POST", "path": "/commit/", "status": 409, **once}], "me/conflict", "hf_dummy"),
        ("503", [{"method": "POST", "path": "/commit/", "status": 503, "times": 100}], "me/busy", "hf_dummy"),
        ("cut", cut, "me/cut", "hf_dummy"),
    ):
        run = trainer(f"{folder}/{name}", hub_model_id=repo)
        run.train()
        ask("/_faults", faults_)
        try:
            run.push_to_hub(token=token)
            said = None
        except PushError as error:
            said = str(error)
        local = transformers.AutoModelForImageClassification.from_pretrained(f"{folder}/{name}")
        ask("/_faults", [])
        if name == "403":
            run.args.hub_model_id = "me/allowed"
        run.push_to_hub(token="hf_dummy")
        back = transformers.AutoModelForImageClassification.from_pretrained(run.hub_model_id)
        found[name] = {"said": said, "local": equal(local, run.model), "second": equal(back, run.model)}
    try:
        trainer(f"{folder}/early", push_to_hub=True, hub_model_id="me/early", hub_token="hf_wrong")
    except PushError as error:
        found["early"] = str(error)
    # An upload that fails in the background during training: the run goes on, and says so at its end.
    run = trainer(f"{folder}/background", push_to_hub=True, hub_model_id="me/background")
    ask("/_faults", [{"method": "POST", "path": "/commit/", "status": 403, "times": 100}])
    said = io.StringIO()
    logging.getLogger("hf_sharp_unlearn").addHandler(logging.StreamHandler(said))
    run.train()
    ask("/_faults", [])
    found["background"] = run.state.global_step, said.getvalue()
    return found


def replace(folder):
    """The command `push`: over the original, then without its history."""
    found, api = {}, huggingface_hub.HfApi()
    original = timm_resnet(seed=5)
    original.push_to_hub("me/model")
    for name in ("pytorch_model.bin", "model-00001-of-00002.safetensors"):  # the same weights in other files
        api.upload_file(path_or_fileobj=name.encode() * 9, path_in_repo=name, repo_id="me/model")
    run = trainer(f"{folder}/out", timm_resnet(seed=5), method="sharp_minmax")
    run.train()
    run.save_model()
    run.create_model_card()
    api.create_tag("me/model", tag="v1")
    push = ["push", f"{folder}/out", "--repo", "me/model"]
    first = ask("/_repo/me/model")
    before = first["commits"][first["refs"]["main"]]["files"]
    old = {before[name] for name in before if name.endswith((".safetensors", ".bin"))}

    def kept():
        return len(old & ask("/_repo/me/model")["pushed"].keys())

    found["plain"] = cli.main(push)
    found["kept"] = [len(old), kept()]
    found["files"] = _files("me/model")
    found["explained"] = cli.main([*push, "--replace"])
    found["untouched"] = kept() == len(old) and len(ask("/_repo/me/model")["commits"]) > 1
    found["tagged"] = cli.main([*push, "--replace", "--delete-history"]), kept()  # a tag still holds them
    api.delete_tag("me/model", tag="v1")
    ask("/_faults", [{"method": "POST", "path": "/lfs-files/batch", "status": 503, "times": 1}])
    found["interrupted"] = cli.main([*push, "--replace", "--delete-history"])
    found["done"] = cli.main([*push, "--replace", "--delete-history"]), kept()
    found["left"] = _files("me/model")
    found["commits"] = len(ask("/_repo/me/model")["commits"])
    back = transformers.AutoModelForImageClassification.from_pretrained("me/model")
    found["equal"] = equal(back, run.model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found["with state"] = cli.main([*push, "--include-training-state"])
    found["warned"] = [str(w.message) for w in caught if "forget set" in str(w.message)]
    found["state files"] = _files("me/model")
    found["branch"] = cli.main([*push, "--revision", "dev"]), sorted(ask("/_repo/me/model")["refs"])
    found["without owner"] = cli.main(["push", f"{folder}/out", "--repo", "short"]), _files("me/short")
    os.makedirs(f"{folder}/empty")
    torch.save({}, f"{folder}/empty/training_args.bin")
    found["nothing"] = cli.main(["push", f"{folder}/empty", "--repo", "me/model"])
    return found


def leaks(folder):
    """Everything that a run may leave beside its model; then every file on the Hub is searched."""
    import peft

    found = {}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_test_loss", "eval_strategy": "steps"}
    run = trainer(
        f"{folder}/run", method="sharp_minmax", hub_model_id="me/clean", hub_token="hf_dummy", eval_steps=1, **best
    )
    run.train()
    run.save_state()
    run.create_model_card(finetuned_from=f"{folder}/run", license="mit")
    run.evaluate_unlearning(timm_resnet(seed=1))
    for name in ("run-0/checkpoint-2/optimizer.pt", "run-0/partition.safetensors", "runs/host/events.out.tfevents.1",
                 "sub/_forget_commitment.json", "optimizer.pt", "notes.txt", "rewind/epoch-1.safetensors", ".env",
                 "train.csv"):  # fmt: skip
        os.makedirs(os.path.dirname(path := f"{folder}/run/{name}"), exist_ok=True)
        with open(path, "w") as file:
            file.write("mine" if name == "notes.txt" else folder)
    run.push_to_hub(also=["notes.txt"])
    found["files"] = _files("me/clean")
    found["found"] = _search("me/clean", folder)
    base = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                                 num_attention_heads=2, num_key_value_heads=2)
    )  # fmt: skip
    base.save_pretrained(f"{folder}/base")
    tokens = [{"input_ids": torch.tensor([i, 1, 2]), "labels": torch.tensor([i, 1, 2])} for i in range(19)]

    def lora(name, **arguments):
        model = transformers.LlamaForCausalLM.from_pretrained(f"{folder}/base")
        config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])
        return trainer(f"{folder}/{name}", peft.get_peft_model(model, config), tokens, **arguments)

    run = lora("lora", hub_model_id="me/lora-of-a-folder")
    run.train()
    run.create_model_card()
    run.save_model()
    with open(f"{folder}/lora/README.md") as file:
        found["card"] = folder in file.read()
    found["checkpoint card"] = os.path.exists(f"{folder}/lora/checkpoint-2/README.md")
    for name, act in (("push", run.push_to_hub), ("before", lambda: lora("other", push_to_hub=True))):
        try:
            act()
        except ValueError as error:
            found[name] = str(error)
    found["pushed"] = ask("/_repo/me/lora-of-a-folder")
    run = trainer(f"{folder}/later", hub_model_id="others/later")
    run.train()
    try:
        run.push_to_hub(blocking=False)
    except PushError as error:
        found["later"] = str(error)
    run.args.hub_model_id = "me/later"
    ask("/_faults", [{"method": "POST", "path": "/commit/", "status": 403, "times": 1}])
    try:
        run.push_to_hub(blocking=False).result()
    except PushError as error:
        found["future"] = str(error)
    found["branch"] = run.push_to_hub(revision="dev", blocking=False).result().commit_url != ""
    found["refs"] = sorted(ask("/_repo/me/later")["refs"])
    return found


def _search(repo, folder):
    """Files on the Hub, in all commits, that have a path or token in them."""
    state, words = ask(f"/_repo/{repo}"), (folder, "hf_dummy", os.path.expanduser("~"))
    found = set()
    for commit in state["commits"].values():
        for name, oid in commit["files"].items():
            with open(os.path.join(os.environ["HUB_BLOBS"], oid), "rb") as file:
                content = file.read()
            if any(word.encode() in content for word in words):
                found.add(name)
    return sorted(found)


if __name__ == "__main__":
    assert hf_sharp_unlearn.__file__
    transformers.utils.logging.disable_progress_bar()
    job = {"round_trip": round_trip, "strategies": strategies, "faults": faults, "replace": replace, "leaks": leaks}[
        sys.argv[1]
    ]
    print(json.dumps(job(sys.argv[2])))
