"""The contract of a target under the screened engine, for the same models as under the plain one."""

from __future__ import annotations

from tests.software import test_contract

for _name, _contract in list(vars(test_contract).items()):
    if _name.startswith("Test"):
        globals()[f"{_name}Screened"] = type(
            f"{_name}Screened", (_contract,), {"engine": "screened", "__module__": __name__}
        )
