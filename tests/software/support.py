"""What the software level supports: fault model × site × number format.

``docs/support_matrix.py`` renders this table; ``test_support.py`` tests every cell: a supported one against a
computation by hand, another by the error or the absence that its reason promises.
"""

from __future__ import annotations

from saboteur.faults import BitFlip, Dead, FaultModel, Noise, RandomValue, StuckAt, StuckValue

MODELS: dict[str, FaultModel] = {
    "bit_flip": BitFlip(),
    "bit_flip, 2 random bits": BitFlip(count=2),
    "bit_flip, 2 adjacent bits": BitFlip(count=2, adjacent=True),
    "stuck_at": StuckAt(),
    "stuck_value": StuckValue(values=(0.75, -2.0)),
    "dead": Dead(outputs=("zero", "high", "low")),
    "random_value": RandomValue(),
    "noise": Noise(additive=0.5, multiplicative=0.1),
}

NATIVE = ("float64", "float32", "float16", "bfloat16")
EMULATED = ("float8_e4m3", "float8_e5m2", "int8", "int4", "16b_rb10", "32b_rb10", "32b_rb26")
AFFINE = ("int8", "int4")
INTEGER_MODULES = "int8 modules"
TORCH_AO = "torch.ao int8"
FORMATS = (*NATIVE, *EMULATED, INTEGER_MODULES, TORCH_AO)

SITES = (
    "weights",
    "biases",
    "buffers",
    "parameters",
    "activations",
    "operators",
    "inputs",
    "connections",
    "hidden_state",
    "cell_state",
)


def never(where: str, fmt: str) -> str | None:
    """Why faults of every model cannot hit ``where`` in ``fmt``; ``None`` where they can."""
    if where == "biases" and fmt in AFFINE:
        return "an affine weight format holds weights; biases stay in the model's own type"
    if fmt in EMULATED:
        return {
            "buffers": "buffers stay in the model's own type",
            "operators": "results of functions stay in the model's own type; module outputs are emulated",
            "hidden_state": "states stay in the model's own type",
            "cell_state": "states stay in the model's own type",
        }.get(where)
    if fmt in (INTEGER_MODULES, TORCH_AO):
        return {
            "inputs": "such models read floating-point inputs and quantise them inside",
            "connections": "single connections are reached in nn.Linear, nn.Conv1d and nn.Conv2d",
            "buffers": "their scales and zero points are no floating-point buffers, or settings of an operator",
            "hidden_state": "recurrent states are reached in floating-point layers",
            "cell_state": "recurrent states are reached in floating-point layers",
        }.get(where)
    return None
