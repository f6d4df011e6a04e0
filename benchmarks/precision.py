"""How much of a perturbation reaches the gradient of a model that computes in bf16 or TF32?

    python -m hf_sharp_unlearn.benchmarks.precision
    python benchmarks/precision.py --models llama-small          the same in a checkout

A network is trained for a while in fp32. Then, at its weights w and for a perturbation eps of SAM or ASAM, the change
g(w + eps) - g(w) of the gradient is computed in several ways, and compared with that in fp32 (cosine and length):

autocast             both passes under bf16 autocast, as with `bf16=True`
autocast then fp32   only the perturbed pass in fp32
tf32                 both passes in fp32 with TF32 products (on a GPU)
weights              fp32 arithmetic on weights of two or more dimensions that are rounded to bf16
grid                 the same, eps added to the rounded weights: perturbed in the grid of bf16
stochastic           the same, w + eps rounded up or down at random, in proportion to the distances
radius x2, x4        autocast, at w + 2 eps or w + 4 eps, the change divided by 2 or 4
radius x2, x4 fp32   the same in fp32: what the larger radius alone changes

`felt` is the cosine between eps and the change of the rounded weights, `share` || g(w + eps) - g(w) || / || g(w) ||.
Rows are appended to precision.csv: mean and deviation over seeds.
"""

import argparse
import contextlib
import statistics
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from hf_sharp_unlearn import ASAM, SAM
from hf_sharp_unlearn.benchmarks.parts.options import parser_of, positive
from hf_sharp_unlearn.benchmarks.parts.rows import save, surroundings
from hf_sharp_unlearn.kernels import reference
from hf_sharp_unlearn.runtime import allowing_tf32, progress_bar

PERTURBATIONS = [SAM(0.001), SAM(0.01), SAM(0.1), ASAM(0.01), ASAM(0.1), ASAM(1.0)]
Loss = Callable[[], Tensor]


def resnet18(device: torch.device) -> tuple[nn.Module, Loss, Loss]:
    """(network, loss on held-out samples, on a batch to train on): timm's, on scikit-learn's digits at 32 pixels."""
    import timm
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    pixels = torch.tensor(pixels / 8 - 1, dtype=torch.float32, device=device).view(-1, 1, 8, 8)
    pixels = pixels.repeat_interleave(4, 2).repeat_interleave(4, 3).repeat(1, 3, 1, 1)
    labels = torch.tensor(labels, device=device)
    network = timm.create_model("resnet18", num_classes=10).to(device)

    def loss(rows):
        return nn.functional.cross_entropy(network(pixels[rows]).float(), labels[rows])

    return network, lambda: loss(slice(1500, 1564)), lambda: loss(torch.randint(1500, (64,)))


def llama_small(device: torch.device) -> tuple[nn.Module, Loss, Loss]:
    """The same for a Llama of 3 M parameters, on pieces of one text of random words with one word in ten wrong."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(hidden_size=256, intermediate_size=688, num_hidden_layers=4, num_attention_heads=4,
                         num_key_value_heads=2, vocab_size=512, max_position_embeddings=128)  # fmt: skip
    network, text = AutoModelForCausalLM.from_config(config).to(device), torch.randint(512, (512,))

    def words(count):
        rows = torch.stack([text[start : start + 64] for start in torch.randint(448, (count,))])
        return torch.where(torch.rand(rows.shape) < 0.1, torch.randint(512, rows.shape), rows).to(device)

    def loss(rows):
        return network(input_ids=rows, labels=rows).loss

    held_out = words(16)
    return network, lambda: loss(held_out), lambda: loss(words(8))


MODELS = {"resnet18": resnet18, "llama-small": llama_small}


def trained(model: str, device: torch.device, steps: int, seed: int) -> tuple[nn.Module, Loss]:
    torch.manual_seed(seed)
    network, loss, training_loss = MODELS[model](device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        training_loss().backward()
        optimizer.step()
    return network.eval(), loss


class Gradients:
    """Gradients of a loss at other weights than the network has, in one precision or another."""

    def __init__(self, network: nn.Module, loss: Loss):
        self.weights, self._loss = list(network.parameters()), loss

    def at(self, weights: Sequence[Tensor], autocast: bool = False, tf32: bool = False) -> list[Tensor]:
        device, own = self.weights[0].device.type, [weight.data for weight in self.weights]
        narrow = torch.autocast(device, torch.bfloat16) if autocast else contextlib.nullcontext()
        try:
            for weight, value in zip(self.weights, weights, strict=True):
                weight.data = value
            with allowing_tf32(tf32):
                with narrow:
                    loss = self._loss()
                return list(torch.autograd.grad(loss, self.weights))
        finally:
            for weight, value in zip(self.weights, own, strict=True):
                weight.data = value


def rounded(weights: Sequence[Tensor], random: bool = False) -> list[Tensor]:
    """Matrices and filters in bf16, as values of fp32: what autocast hands to a product."""
    return [one if one.ndim < 2 else _at_random(one) if random else one.bfloat16().float() for one in weights]


def _at_random(value: Tensor) -> Tensor:
    bits = value.view(torch.int32)
    return ((bits + torch.randint_like(bits, 1 << 16)) & -(1 << 16)).view(torch.float32)


def cosine(a: Sequence[Tensor], b: Sequence[Tensor]) -> tuple[float, float]:
    """(cosine, ratio of lengths) of two lists, each taken as one vector."""
    a, b = (torch.cat([one.flatten().double() for one in values]) for values in (a, b))
    return (a @ b / (a.norm() * b.norm())).item(), (a.norm() / b.norm()).item()


def compare(gradients: Gradients, sharpness: SAM | ASAM) -> dict[str, tuple[float, float]]:
    """{way: (cosine, ratio of lengths)}, and "felt" and "share" (see the module's docstring)."""
    w = [weight.detach().clone() for weight in gradients.weights]
    clean, etas = gradients.at(w), [sharpness.eta_of(weight) for weight in w]
    length = reference.norms(w, [clean], etas).sqrt().item()

    def moved(times: float = 1.0, start: Sequence[Tensor] = w) -> list[Tensor]:
        outs = [torch.empty_like(weight) for weight in w]
        reference.displace(w, clean, outs, etas, times * sharpness.rho / length)
        return [s + (out - weight) for s, out, weight in zip(start, outs, w, strict=True)]

    def change(one: Sequence[Tensor], other: Sequence[Tensor], times: float = 1.0) -> list[Tensor]:
        return [(a - b) / times for a, b in zip(one, other, strict=True)]

    exact, q, narrow = change(gradients.at(moved()), clean), rounded(w), gradients.at(w, autocast=True)
    at_q = gradients.at(q)
    ways = {
        "autocast": change(gradients.at(moved(), autocast=True), narrow),
        "autocast then fp32": change(gradients.at(moved()), narrow),
        "weights": change(gradients.at(rounded(moved())), at_q),
        "grid": change(gradients.at(rounded(moved(start=q))), at_q),
        "stochastic": change(gradients.at(rounded(moved(), random=True)), at_q),
    }
    for times in (2, 4):
        far = moved(times)
        ways[f"radius x{times}"] = change(gradients.at(far, autocast=True), narrow, times)
        ways[f"radius x{times} fp32"] = change(gradients.at(far), clean, times)
    if w[0].is_cuda:
        ways["tf32"] = change(gradients.at(moved(), tf32=True), gradients.at(w, tf32=True))
    found = {way: cosine(value, exact) for way, value in ways.items()}
    found["felt"] = cosine(change(rounded(moved()), q), change(moved(), w))
    found["share"] = cosine(exact, clean)
    return found


def measure(model: str, device: torch.device, steps: int, seeds: int) -> list[dict]:
    """A row for each perturbation and way."""
    found = []
    for seed in progress_bar(range(seeds), desc=model, leave=False):
        gradients = Gradients(*trained(model, device, steps, seed))
        found.append({sharpness: compare(gradients, sharpness) for sharpness in PERTURBATIONS})
    rows = []
    for sharpness in PERTURBATIONS:
        felt, share = ([one[sharpness][name] for one in found] for name in ("felt", "share"))
        for way in found[0][sharpness].keys() - {"felt", "share"}:
            cosines, lengths = zip(*(one[sharpness][way] for one in found), strict=True)
            rows.append({
                "part": "precision", "model": model, "parameters": sum(w.numel() for w in gradients.weights),
                "perturbation": repr(sharpness), "felt": round(statistics.mean(value for value, _ in felt), 3),
                "share": round(statistics.mean(value for _, value in share), 4), "way": way,
                "cosine": round(statistics.mean(cosines), 4), "cosine_sd": round(_deviation(cosines), 4),
                "length": round(statistics.mean(lengths), 3), "length_sd": round(_deviation(lengths), 3),
                "seeds": seeds, "train_steps": steps,
            })  # fmt: skip
    return sorted(rows, key=lambda row: list(found[0][PERTURBATIONS[0]]).index(row["way"]))


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def show(rows: list[dict]) -> None:
    """A line for each perturbation, a column for each way."""
    ways = list(dict.fromkeys(row["way"] for row in rows))
    print(f"\n{rows[0]['model']}, {rows[0]['parameters'] / 1e6:.1f} M parameters; cosine with the change in fp32")
    print(f"{'perturbation':<36}{'felt':>7}{'share':>8}" + "".join(f"{way:>20}" for way in ways))
    for name in dict.fromkeys(row["perturbation"] for row in rows):
        mine = {row["way"]: row for row in rows if row["perturbation"] == name}
        first = mine[ways[0]]
        cells = "".join(f"{mine[way]['cosine']:>11.4f} ({mine[way]['cosine_sd']:.4f})" for way in ways)
        print(f"{name:<36}{first['felt']:>7.3f}{first['share']:>8.3f}{cells}")


def main(argv: list[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--models", nargs="+", choices=sorted(MODELS), default=sorted(MODELS), help="networks")
    parser.add_argument("--seeds", type=positive, default=3, help="networks of each kind")
    parser.add_argument("--train-steps", type=positive, default=60, help="AdamW steps before the measurement")
    options: argparse.Namespace = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    around, rows = surroundings(device), []
    for model in options.models:
        found = [row | around for row in measure(model, device, options.train_steps, options.seeds)]
        show(found)
        rows += found
    save(rows, options.output_dir, "precision.csv")


if __name__ == "__main__":
    main()
