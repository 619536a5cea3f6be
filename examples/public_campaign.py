"""What the public benchmark campaign gives here, beside the counts that were published with it.

    python examples/public_campaign.py differences STORE [LIST]
    python examples/public_campaign.py ties

``differences`` compares, fault by fault, how many images are *critical* (another class comes first) in a result folder
of ``public_campaign.yaml`` with the published column ``critical`` of the fault list, by class of bit; a campaign that
is not finished is compared as far as it got. LIST is the list that the campaign names if absent. The published counts
take an answer that is not a number for class 0, as ``argmax`` does; here such an answer is counted as critical, and
faults that have any are shown apart.

``ties`` shows the images that come nearest to a tie of two classes without a fault: as the weights and images are, and
with the operands of the last stage's convolutions rounded to TensorFloat-32, as the published counts show that they
were (flips of the 12 lowest bits of these layers' weights never changed a single output there).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import resnet20
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from saboteur.campaign.store import Store
from saboteur.faults import lists
from saboteur.statistics import upper_bound

CONFIDENCE = 0.99
LAST_STAGE = "layer3."


def differences(store: Path, list_path: Path | None = None) -> None:
    """Print how the critical counts differ from the published ones.

    Args:
        store: a result folder.
        list_path: the fault list with the column ``critical``.
    """
    opened = Store.open(store)
    trials = pa.concat_tables(opened.tables())
    published = lists.read(list_path or opened.campaign.sampling.path).take(trials["trial"])
    bit, expected = (published[name].to_numpy() for name in ("Bit", "critical"))
    unanswered = trials["nonfinite"].to_numpy()
    difference = trials["sdc:sdc-1"].to_numpy() + unanswered - expected
    total = {name: int(trials[name].to_numpy().sum()) for name in ("inferences", "screened", "audited", "audit_misses")}
    wrong = upper_bound(total["audit_misses"], total["audited"], CONFIDENCE)
    print(f"{len(trials):,} faults, {total['inferences']:,} inferences, {total['screened']:,} of them predicted")
    print(f"audit: {total['audit_misses']} wrong of {total['audited']:,}; at most {wrong:.2g} at {CONFIDENCE:.0%}")
    print("difference of critical images, ours minus published")
    print(f"{'bits':32}{'faults':>8}{'none':>8}{'1':>7}{'2':>6}{'more':>6}{'mean':>8}{'range':>14}")
    finite = unanswered == 0
    for name, chosen in {
        "mantissa, 0 to 11": bit <= 11,
        "mantissa, 12 to 22": (bit > 11) & (bit <= 22),
        "exponent, 23 to 29": (bit > 22) & (bit <= 29),
        "exponent, 30, answers finite": (bit == 30) & finite,
        "exponent, some not finite": (bit > 22) & (bit <= 30) & ~finite,
        "sign, 31": bit == 31,
    }.items():
        _row(name, difference[chosen & (finite | (name == "exponent, some not finite"))])
    _row("all, answers finite", difference[finite])


def _row(name: str, difference: NDArray[np.int64]) -> None:
    if not len(difference):
        return
    size = np.abs(difference)
    counts = [int((size == k).sum()) for k in (0, 1, 2)] + [int((size > 2).sum())]
    numbers = "".join(f"{count:>{width}}" for count, width in zip(counts, (8, 7, 6, 6), strict=True))
    reach = f"{difference.min()} … {difference.max()}"
    print(f"{name:32}{len(difference):>8}{numbers}{difference.mean():>8.2f}{reach:>14}")


def ties(show: int = 6) -> None:
    """Print the images whose two largest outputs lie nearest to each other, fault-free."""
    model, (images, _) = resnet20.model(), resnet20.data()
    plain = _margins(model, images)
    layers = [m for path, m in model.named_modules() if path.startswith(LAST_STAGE) and isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        for layer in layers:
            layer.weight.copy_(_to_tensor_float(layer.weight))
            layer.register_forward_pre_hook(lambda _, args: (_to_tensor_float(args[0]),))
    rounded = _margins(model, images)
    print(f"{'image':>6}{'margin':>12}{'last stage in TF32':>20}")
    for image in sorted({*np.argsort(plain)[:show], *np.argsort(rounded)[:show]}, key=lambda i: plain[i]):
        print(f"{image:>6}{plain[image]:>12.2e}{rounded[image]:>20.2e}")


def _margins(model: nn.Module, images: Tensor, batch: int = 64) -> NDArray[np.float32]:
    with torch.inference_mode():
        outputs = torch.cat([model(part) for part in images.split(batch)])
    top = outputs.topk(2, dim=1).values
    return (top[:, 0] - top[:, 1]).numpy()


def _to_tensor_float(values: Tensor) -> Tensor:
    """Values with 10 bits of mantissa, to nearest, ties away from zero (PTX ISA, ``cvt.rna.tf32.f32``)."""
    words = values.contiguous().view(torch.int32)
    return ((words + 0x1000) & ~0x1FFF).view(torch.float32)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["differences", store]:
            differences(Path(store))
        case ["differences", store, list_path]:
            differences(Path(store), Path(list_path))
        case ["ties"]:
            ties()
        case _:
            sys.exit(__doc__)
