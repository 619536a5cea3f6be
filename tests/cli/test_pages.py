"""The generated pages of the documentation name every key and every option there is."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import typer

from saboteur.campaign import Campaign, Resources, Statistical
from saboteur.cli import app
from saboteur.extensions import registered
from saboteur.report import FORMULAS, TERMS

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def generate():
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_campaign_file(generate):
    page = "\n".join(generate.campaign_file())
    for model in (Campaign, Resources, Statistical):
        for name in model.model_fields:
            assert name == "kind" or f"| `{name}` |" in page
    for group in ("saboteur.targets", "saboteur.fault_models", "saboteur.criteria"):
        for kind in registered(group):
            assert f"### `{kind}`" in page
    assert "| `margin` | number, > 0, < 1 | `0.01` |" in page
    assert "| `workers` | whole number, ≥ 1 | `1` |" in page


def test_command_line(generate):
    page = "\n".join(generate.command_line())
    for name, command in typer.main.get_command(app).commands.items():
        assert f"## `saboteur {name}`" in page
        for parameter in command.params:
            for flag in parameter.opts:
                assert flag in page or parameter.param_type_name == "argument"
    assert "`SABOTEUR_WORKERS`" in page


def test_terms_and_formulas(generate):
    terms, formulas = "\n".join(generate.terms()), "\n".join(generate.formulas())
    assert all(term.meaning in terms and term.source in terms for term in TERMS)
    assert all(formula.quantity in formulas for formula in FORMULAS)
