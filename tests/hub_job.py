"""Pushes to the Hub of `hub_server.py`, run in a process of its own: its address is read on import.

python hub_job.py JOB FOLDER      prints what it found as JSON on the last line
"""

import json
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
from hf_sharp_unlearn import UnlearningArguments, UnlearningTrainer, cli, split_forget
from hf_sharp_unlearn.hub import PushError

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
    for strategy in ("end", "every_save", "checkpoint", "all_checkpoints"):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run = trainer(f"{folder}/{strategy}", method="sharp_minmax", push_to_hub=True, hub_strategy=strategy,
                          hub_always_push=True, hub_token="hf_dummy")  # fmt: skip
        run.train()
        said = [str(w.message) for w in caught if "forget set" in str(w.message)]
        before = _files(f"me/{strategy}")
        run.save_model()
        found[strategy] = {"warned": said, "trained": before, "saved": _files(f"me/{strategy}")}
        found[strategy]["arguments"] = _strings(f"{folder}/{strategy}", run)
    return found


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
    run.train()
    ask("/_faults", [])
    found["background"] = run.state.global_step
    # What holds traces of the forget set is not pushed from the output folder.
    run.partition = None
    torch.save({}, f"{folder}/background/optimizer.pt")
    try:
        run.push_to_hub()
    except ValueError as error:
        found["traces"] = str(error)
    return found


def replace(folder):
    """The command `push`: over the original, then without its history."""
    found = {}
    original = timm_resnet(seed=5)
    original.push_to_hub("me/model")
    run = trainer(f"{folder}/out", timm_resnet(seed=5), method="sharp_minmax")
    run.train()
    run.save_model()
    run.create_model_card()
    huggingface_hub.HfApi().create_tag("me/model", tag="v1")
    push = ["push", f"{folder}/out", "--repo", "me/model"]
    first = ask("/_repo/me/model")
    old = first["commits"][first["refs"]["main"]]["files"]["model.safetensors"]
    found["plain"] = cli.main(push)
    found["still there"] = old in ask("/_repo/me/model")["pushed"]
    found["files"] = _files("me/model")
    found["explained"] = cli.main([*push, "--replace"])
    found["untouched"] = old in ask("/_repo/me/model")["pushed"] and len(ask("/_repo/me/model")["commits"]) > 1
    ask("/_faults", [{"method": "POST", "path": "/lfs-files/batch", "status": 503, "times": 1}])
    found["interrupted"] = cli.main([*push, "--replace", "--delete-history"])
    found["done"] = cli.main([*push, "--replace", "--delete-history"])
    state = ask("/_repo/me/model")
    found["gone"] = old not in state["pushed"]
    found["main"] = [c for c in state["commits"].values() if c["parent"] is None and "unlearned" in c["title"].lower()]
    back = transformers.AutoModelForImageClassification.from_pretrained("me/model")
    found["equal"] = equal(back, run.model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found["with state"] = cli.main([*push, "--include-training-state"])
    found["warned"] = [str(w.message) for w in caught if "forget set" in str(w.message)]
    found["state files"] = _files("me/model")
    found["nothing"] = cli.main(["push", folder, "--repo", "me/model"])
    return found


if __name__ == "__main__":
    assert hf_sharp_unlearn.__file__
    transformers.utils.logging.disable_progress_bar()
    job = {"round_trip": round_trip, "strategies": strategies, "faults": faults, "replace": replace}[sys.argv[1]]
    print(json.dumps(job(sys.argv[2])))
