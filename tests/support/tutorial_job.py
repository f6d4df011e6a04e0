"""Run docs/tutorial.md, block by block, in a folder: python blocks share their names, sh blocks run in a shell.

The Hub is that of hub_server.py (HF_ENDPOINT); model and data are put there first.

    python tutorial_job.py FOLDER      prints what the blocks left as JSON on the last line
"""

import json
import os
import re
import subprocess
import sys

import datasets
import numpy as np
import torch
import transformers
from huggingface_hub import HfApi
from parts import ROOT
from PIL import Image
from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments, ViTImageProcessor

from hf_sharp_unlearn import ImagesInMemory, UnlearningArguments

PAGE = ROOT / "docs" / "tutorial.md"
NAMES = ("cat", "dog", "eel")


def pictures(count, seed):
    """Noise in the colour of the class; every tenth has another class's label."""
    draw, images, labels = np.random.default_rng(seed), [], []
    for i in range(count):
        colour = np.eye(3)[i % 3] * 120
        images.append(Image.fromarray((draw.integers(120, size=(10, 10, 3)) + colour).astype(np.uint8)))
        labels.append((i + 1) % 3 if i % 10 == 0 else i % 3)
    features = {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=list(NAMES)),
        "wrong": datasets.Value("bool"),
    }
    wrong = [i % 10 == 0 for i in range(count)]
    return datasets.Dataset.from_dict({"image": images, "label": labels, "wrong": wrong}, datasets.Features(features))


def fill(folder):
    """me/animals, and two models of it: one that has seen everything, one that has not."""
    api = HfApi()
    api.create_repo("me/animals", repo_type="dataset")
    train = pictures(90, 0)
    for name, table in (("train", train), ("test", pictures(30, 1))):
        table.to_parquet(path := f"{folder}/{name}.parquet")
        api.upload_file(path_or_fileobj=path, path_in_repo=f"{name}.parquet", repo_id="me/animals", repo_type="dataset")
    processor = ViTImageProcessor(size={"height": 8, "width": 8})
    images = ImagesInMemory.from_dataset(train, processor)
    without = [row for row in range(90) if row not in (3, 17, 41)]
    for model_name, rows in (("animals-resnet", list(range(90))), ("animals-retrained", without)):
        torch.manual_seed(0)
        labels = {"id2label": dict(enumerate(NAMES)), "label2id": {name: i for i, name in enumerate(NAMES)}}
        config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", **labels)
        model = ResNetForImageClassification(config)
        args = TrainingArguments(f"{folder}/{model_name}", num_train_epochs=30, learning_rate=5e-3, use_cpu=True,
                                 save_strategy="no", per_device_train_batch_size=32, report_to="none",
                                 disable_tqdm=True)  # fmt: skip
        Trainer(model, args, train_dataset=images.select(rows)).train()
        model.push_to_hub(f"me/{model_name}")
        processor.push_to_hub(f"me/{model_name}")


def run(folder):
    with open(PAGE, encoding="utf-8") as file:
        blocks = re.findall(r"^```(python|sh)\n(.*?)^```$", file.read(), re.S | re.M)
    names = {}
    environment = {**os.environ, "PATH": os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]}
    os.chdir(folder)
    for language, text in blocks:
        if language == "python":
            exec(compile(text, PAGE, "exec"), names)
        else:
            subprocess.run(["bash", "-e", "-c", text], check=True, env=environment, stdout=sys.stderr)
    return len(blocks), names


if __name__ == "__main__":
    transformers.utils.logging.disable_progress_bar()
    UnlearningArguments.use_cpu = True
    os.makedirs(f"{sys.argv[1]}/made", exist_ok=True)
    fill(f"{sys.argv[1]}/made")
    count, names = run(sys.argv[1])
    found = {"blocks": count, "forget": names["trainer"].evaluate()["eval_forget_accuracy"], "dogs": len(names["dogs"])}
    found["equal"] = all(
        torch.equal(a, b) for a, b in zip(names["again"].parameters(), names["trainer"].model.parameters(), strict=True)
    )
    found["tug_of_war"] = names["report"]["tug_of_war"].value
    for name in ("animals-by-command", "without-dogs", "cleaned", "cleaned-by-score"):
        with open(f"{name}/all_results.json") as file:
            found[name] = json.load(file)
    print(json.dumps(found))
