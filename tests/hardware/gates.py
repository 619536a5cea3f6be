"""Second opinions on a gate-level netlist: it as plain Verilog for Icarus, and a naive simulator of our own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from saboteur.levels.hardware.importing import Netlist

FUNCTIONS = {
    "$_NOT_": ("A", "~{A}", lambda a: 1 - a),
    "$_AND_": ("AB", "{A} & {B}", lambda a, b: a & b),
    "$_NAND_": ("AB", "~({A} & {B})", lambda a, b: 1 - (a & b)),
    "$_OR_": ("AB", "{A} | {B}", lambda a, b: a | b),
    "$_NOR_": ("AB", "~({A} | {B})", lambda a, b: 1 - (a | b)),
    "$_XOR_": ("AB", "{A} ^ {B}", lambda a, b: a ^ b),
    "$_XNOR_": ("AB", "~({A} ^ {B})", lambda a, b: 1 - (a ^ b)),
    "$_MUX_": ("ABS", "{S} ? {B} : {A}", lambda a, b, s: b if s else a),
}


def plain(name: str) -> str:
    return name.rsplit("\\", 1)[-1]


def as_verilog(netlist: Netlist, saboteurs: bool = False) -> tuple[str, dict[str, str]]:
    """Verilog in which every pin is a wire of its own, and where each site is: ``{"u.cell.A": "dut.i0.c3_A"}``.

    With ``saboteurs``, gates take one unit of time, and a net reads ``testbench.one`` or ``testbench.other`` instead
    of what drives it where ``u.cell.saboteur`` is 1 or 2; ``u.cell.driven`` is what drives it, ``u.cell.before`` what
    drove it before the last rising edge of ``testbench.clk``.
    """
    text, where = [], {}
    number = {name: k for k, name in enumerate(netlist.modules)}
    for name, module in netlist.modules.items():
        ports = ", ".join(
            f"{entry['direction']} [{len(entry['bits']) - 1}:0] \\{port} " for port, entry in module["ports"].items()
        )
        text.append(f"module m{number[name]}({ports});")
        value = {"0": "1'b0", "1": "1'b1", "x": "1'b0"}
        used = {bit for net in module["netnames"].values() for bit in net["bits"] if isinstance(bit, int)}
        registers = {bit for cell in module["cells"].values() for bit in cell["connections"].get("Q", [])}
        text += [f"{'reg' if bit in registers else 'wire'} n{bit};" for bit in sorted(used)]
        value |= {bit: f"n{bit}" for bit in used}
        for port, entry in module["ports"].items():
            for i, bit in enumerate(entry["bits"]):
                if entry["direction"] == "input":
                    text.append(f"assign n{bit} = \\{port} [{i}];")
                else:
                    text.append(f"assign \\{port} [{i}] = {value[bit]};")
        for k, cell in enumerate(module["cells"].values()):
            pins = {port: f"c{k}_{port}" for port in cell["connections"] if port not in "YQ"}
            if cell["type"] in FUNCTIONS or cell["type"].startswith("$_DFF"):
                for port, wire in pins.items():
                    text.append(f"wire {wire} = {value[cell['connections'][port][0]]};")
            if cell["type"] in FUNCTIONS:
                expression = FUNCTIONS[cell["type"]][1].format(**pins)
                net = cell["connections"]["Y"][0]
                if saboteurs:
                    text.append(f"wire d{k}; assign #1 d{k} = {expression}; reg [1:0] s{k} = 0; reg o{k};")
                    text.append(f"always @(posedge testbench.clk) o{k} <= d{k};")
                    expression = f"s{k} == 0 ? d{k} : s{k} == 1 ? testbench.one : testbench.other"
                text.append(f"assign n{net} = {expression};")
            elif cell["type"] == "$_DFF_P_":
                text.append(f"always @(posedge {pins['C']}) n{cell['connections']['Q'][0]} <= {pins['D']};")
            else:
                kind = netlist.modules[cell["type"]]["ports"]
                bits = {port: ", ".join(value[bit] for bit in reversed(cell["connections"][port])) for port in kind}
                joined = ", ".join(f".\\{port} ({{{value_}}})" for port, value_ in bits.items())
                text.append(f"m{number[cell['type']]} i{k}({joined});")
        text.append("endmodule")

    def walk(name: str, path: str, instance: str) -> None:
        module = netlist.modules[name]
        for k, (label, cell) in enumerate(module["cells"].items()):
            full = f"{path}{plain(label)}"
            if cell["type"] in netlist.modules:
                walk(cell["type"], f"{full}.", f"{instance}.i{k}")
            else:
                for word, letter in (("saboteur", "s"), ("driven", "d"), ("before", "o")):
                    where[f"{full}.{word}"] = f"{instance}.{letter}{k}"
                for port, bits in cell["connections"].items():
                    where[f"{full}.{port}"] = f"{instance}.n{bits[0]}" if port in "YQ" else f"{instance}.c{k}_{port}"

    walk(netlist.top, "", "dut")
    return "\n".join(text), where


class NaiveSimulator:
    """One machine, one gate at a time, in whatever order settles: slow and simple.

    Args:
        netlist: gate level.
        stuck: (site, value) by name as in :func:`as_verilog`; ``cell.Y`` and ``cell.Q`` are stems.
        bridge: two stems, and ``wired_and``, ``wired_or`` or ``first`` (the first drives the second).
    """

    def __init__(
        self,
        netlist: Netlist,
        stuck: Mapping[str, int] | None = None,
        bridge: tuple[str, str, str] | None = None,
    ):
        self.netlist, self.stuck = netlist, dict(stuck or {})
        self.bridge, self.driven = bridge, {}
        self.alias: dict[tuple[str, int], tuple[str, int]] = {}
        self.gates: list[tuple[str, str, dict[str, Any], Any]] = []
        self._walk(netlist.top, "")
        self.value: dict[Any, int] = {}
        self.state = {name: 0 for name, kind, _, _ in self.gates if kind.startswith("$_DFF")}

    def _walk(self, name: str, path: str) -> None:
        module = self.netlist.modules[name]
        for label, cell in module["cells"].items():
            full = f"{path}{plain(label)}"
            if cell["type"] in self.netlist.modules:
                child = self.netlist.modules[cell["type"]]
                for port, entry in child["ports"].items():
                    for outer, inner in zip(cell["connections"][port], entry["bits"], strict=True):
                        if entry["direction"] == "input":
                            self.alias[f"{full}.", inner] = (path, outer)
                        elif isinstance(outer, int):
                            self.alias[path, outer] = (f"{full}.", inner)
                self._walk(cell["type"], f"{full}.")
            else:
                pins = {port: (path, bits[0]) for port, bits in cell["connections"].items() if port not in "YQ"}
                out = cell["connections"].get("Y", cell["connections"].get("Q"))[0]
                self.gates.append((full, cell["type"], pins, (path, out)))

    def _net(self, net: Any) -> int:
        while net in self.alias:
            net = self.alias[net]
        if isinstance(net[1], str):
            return int(net[1] == "1")
        return self.value.get(net, 0)

    def _pin(self, gate: str, port: str, net: Any) -> int:
        return self.stuck.get(f"{gate}.{port}", self._net(net))

    def settle(self, inputs: Mapping[str, int]) -> dict[str, int]:
        """The outputs under these inputs, in the present state."""
        top = self.netlist.modules[self.netlist.top]["ports"]
        for port, word in inputs.items():
            for i, bit in enumerate(top[port]["bits"]):
                self.value["", bit] = word >> i & 1
        for gate, kind, _, out in self.gates:
            if kind.startswith("$_DFF"):
                self.value[out] = self.stuck.get(f"{gate}.Q", self.state[gate])
        changed = True
        while changed:
            changed = False
            for gate, kind, pins, out in self.gates:
                if kind.startswith("$_DFF"):
                    continue
                ports, _, function = FUNCTIONS[kind]
                new = function(*(self._pin(gate, port, pins[port]) for port in ports))
                new = self._bridged(f"{gate}.Y", self.stuck.get(f"{gate}.Y", new))
                if self.value.get(out) != new:
                    self.value[out] = new
                    changed = True
        return {
            port: sum(self._net(("", bit)) << i for i, bit in enumerate(entry["bits"]))
            for port, entry in top.items()
            if entry["direction"] == "output"
        }

    def _bridged(self, stem: str, new: int) -> int:
        if self.bridge is None or stem not in self.bridge[:2]:
            return new
        first, second, effect = self.bridge
        self.driven[stem] = new
        other = self.driven.get(second if stem == first else first, 0)
        if effect == "first":
            return new if stem == first else other
        return new & other if effect == "wired_and" else new | other

    def fan_in(self, stem: str) -> set[str]:
        """The stems of all gates before one, up to flip-flops."""
        driver = {out: (gate, kind, pins) for gate, kind, pins, out in self.gates}
        seen, queue = set(), [next(out for gate, _, _, out in self.gates if f"{gate}.Y" == stem)]
        while queue:
            net = queue.pop()
            while net in self.alias:
                net = self.alias[net]
            if net in driver and driver[net][1] in FUNCTIONS and f"{driver[net][0]}.Y" not in seen:
                seen.add(f"{driver[net][0]}.Y")
                queue += driver[net][2].values()
        return seen

    def clock(self) -> None:
        """One edge."""
        self.state |= {
            gate: self._pin(gate, "D", pins["D"]) for gate, kind, pins, _ in self.gates if kind.startswith("$_DFF")
        }

    def run(self, inputs: Mapping[str, Sequence[int]]) -> list[dict[str, int]]:
        """The outputs of every cycle."""
        outputs = []
        for t in range(len(next(iter(inputs.values())))):
            outputs.append(self.settle({port: int(words[t]) for port, words in inputs.items()}))
            self.clock()
        return outputs
