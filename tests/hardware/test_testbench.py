"""Stimulus files, answers, hangs, alarms, waveforms."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from saboteur.campaign.target import Resources
from saboteur.errors import TargetError
from saboteur.faults import BitFlip, Faults, StuckAt
from saboteur.levels.hardware.importing import read_verilog
from saboteur.levels.hardware.models import Delay, Open
from saboteur.levels.hardware.netlist import Design
from saboteur.levels.hardware.simulate import Stimulus
from saboteur.levels.hardware.spec import HardwareFault, HardwareTarget
from saboteur.levels.hardware.target import DesignTarget, safety_split
from saboteur.levels.hardware.testbench import Observation, Observed, read_hex, read_stimulus
from saboteur.levels.hardware.waves import path_of_error, read_waves, write_waves
from saboteur.outcomes import Recorder
from saboteur.outcomes.criteria import NumericError
from tests.hardware.icarus import needs_icarus
from tests.hardware.test_golden import DESIGNS

HANDSHAKE = """
module sender(input clk, input rst, input start, output reg valid, output reg [7:0] data, output reg alarm);
  reg [3:0] left; reg [3:0] copy;
  always @(posedge clk) begin
    alarm <= !rst && left != copy;
    if (rst) begin left <= 0; copy <= 0; valid <= 0; data <= 0; end
    else if (start) begin left <= 4; copy <= 4; valid <= 0; end
    else begin
      valid <= left != 0; data <= data + 8'd3;
      if (left != 0) begin left <= left - 1; copy <= copy - 1; end
    end
  end
endmodule
"""
CYCLES = 20


@pytest.fixture
def sender(tmp_path: Path) -> DesignTarget:
    source = tmp_path / "sender.v"
    source.write_text(HANDSHAKE)
    rst, start = np.zeros((1, CYCLES), np.uint64), np.zeros((1, CYCLES), np.uint64)
    rst[0, :2], start[0, 3] = 1, 1
    observation = Observation((Observed("data"),), valid="valid", strobe=np.arange(CYCLES) >= 2, alarms=("alarm",))
    netlist = read_verilog([source], "sender")
    return DesignTarget(netlist, Stimulus({"rst": rst, "start": start}), observation, first_cycle=2)


def one(target: DesignTarget, fault: HardwareFault, step: int, variant: int):
    space = target.space([fault])
    columns = (np.zeros(1, np.int64), np.zeros(1, np.int32), np.zeros(1, np.int64))
    faults = Faults(np.array([7], np.uint64), *columns, np.array([step], np.int32), np.array([variant], np.int64))
    return space, faults


def outcome(target: DesignTarget, fault: HardwareFault, step: int, variant: int) -> tuple[str, int | None]:
    table = target.outcomes(*one(target, fault, step, variant), 0)
    return table["outcome"][0].as_py(), table["latency"][0].as_py()


def upset(name: str) -> HardwareFault:
    return HardwareFault(where="flip_flops", names=name, model=BitFlip(), duration="transient")


def test_answers_alarms_and_hangs(sender: DesignTarget) -> None:
    golden = sender.golden()
    # data grows by 3 in each cycle out of reset but that of start, from cycle 3 on; words come in cycles 5 .. 8
    assert golden.outputs.tolist() == [[6, 9, 12, 15]]
    assert outcome(sender, upset("data"), 0, 0) == ("sdc", None)
    assert outcome(sender, upset("data"), 12, 0) == ("latent", None)
    # in cycle 5 the counter is 3: one alarm a cycle later
    assert outcome(sender, upset("left"), 3, 0) == ("detected", 1)
    assert outcome(sender, upset("alarm"), 3, 0) == ("detected", 0)
    stuck = HardwareFault(where="flip_flops", names="valid", model=StuckAt(value=0))
    assert outcome(sender, stuck, 0, 0) == ("hang", None)
    recorder = Recorder(golden, (NumericError(tolerance=0.5),), 1)
    sender.inject(*one(sender, stuck, 0, 0), recorder)
    assert recorder.table()["hang"].to_pylist() == [1]
    recorder = Recorder(golden, (NumericError(tolerance=0.5),), 1, keep_outputs=True)
    sender.inject(*one(sender, upset("data"), 0, 4), recorder)
    assert recorder.pairs()["output"].to_pylist() == [[22, 25, 28, 31]]


def test_safety_split(sender: DesignTarget) -> None:
    """Every upset of every register in every cycle; each fault is in one part."""
    sender.golden()
    space = sender.space([HardwareFault(where="flip_flops", model=BitFlip(), duration="transient")])
    whole = space.strata("network")[0]
    region, element, step, variant = space.decode(whole, np.arange(whole.size))
    trials = np.arange(whole.size)
    faults = Faults(trials.astype(np.uint64), trials, region.astype(np.int32), element, step, variant)
    table = sender.outcomes(space, faults, 0)
    split = safety_split(table)
    assert sum(split[part] for part in ("safe", "detected", "residual", "latent")) == pytest.approx(1)
    outcome = np.array(table["outcome"].to_pylist())
    names = np.array([space.regions[i].site for i in region])
    # the duplicated counter and the alarm are covered but for the last cycle, of which the alarm comes too late
    assert (outcome[(names == "alarm")] == "detected").all()
    covered = np.isin(names, ["left", "copy"]) & (step < CYCLES - 2 - 1)
    assert (outcome[covered & (step != 1)] == "detected").all()
    assert np.isin(outcome[names == "data"], ["sdc", "latent"]).all()
    assert 0 < split["diagnostic_coverage"] < 1


def test_late_words_are_the_same_answer(sender: DesignTarget) -> None:
    """What counts is the sequence of valid words, not when they come."""
    sender.golden()
    trace = sender.golden_trace(0)
    slots = {slot.name: i for i, slot in enumerate(sender.simulator.design.slots)}
    assert trace[4:10, slots["valid"]].tolist() == [0, 1, 1, 1, 1, 0]
    # an upset of valid in cycle 4 puts a word in front
    space, faults = one(sender, upset("valid"), 2, 0)
    answers = sender.answers(space, faults, 0)
    assert answers.outputs.tolist() == [[3, 6, 9, 12]]


def test_delay_and_open(tmp_path: Path) -> None:
    """On a net that follows an input: what a register behind it sees."""
    source = tmp_path / "follow.v"
    source.write_text(
        "module follow(input clk, input a, output reg q);\nwire n = ~a;\nalways @(posedge clk) q <= n;\nendmodule"
    )
    a = np.array([[1, 1, 0, 0, 1, 0, 1, 1, 0, 0]], np.uint64)
    observation = Observation((Observed("q"),), strobe=np.arange(10) >= 1)
    target = DesignTarget(read_verilog([source], "follow"), Stimulus({"a": a}), observation, first_cycle=1)
    n = 1 - a[0, :9].astype(int)
    assert target.golden().outputs.tolist() == [n.tolist()]
    before = np.concatenate([n[:1], n[:-1]])

    def seen(model, duration: str, step: int = 0) -> list[int]:
        fault = HardwareFault(where="nets", model=model, duration=duration)
        answers = target.answers(*one(target, fault, step, 0), 0)
        return answers.outputs[0].tolist()

    assert seen(Delay(edge="rise"), "permanent") == (n & before).tolist()
    assert seen(Delay(edge="fall"), "permanent") == (n | before).tolist()
    assert seen(Delay(edge="both"), "permanent") == before.tolist()
    assert seen(Open(), "permanent") == [n[0]] * 9
    late = n.copy()
    late[4] = n[3]
    assert seen(Delay(), "transient", step=3) == late.tolist()


def test_waveforms(sender: DesignTarget, tmp_path: Path) -> None:
    sender.golden()
    space, faults = one(sender, upset("left"), 3, 0)
    golden, faulty = sender.traces(sender.rows(space, faults), 0)
    path = path_of_error(sender.simulator.design.slots, golden, faulty)
    assert path["name"].to_pylist()[0] == "left" and path["cycle"].to_pylist()[0] == 5
    assert "alarm" in path["name"].to_pylist()
    write_waves(tmp_path / "trial.vcd", sender.simulator.design.slots, golden, faulty)
    text = (tmp_path / "trial.vcd").read_text()
    assert text.count("$scope module golden $end") == 1 and text.count("$scope") == text.count("$upscope")
    values = values_of_scope(text, "faulty")
    left = next(i for i, slot in enumerate(sender.simulator.design.slots) if slot.name == "left")
    assert values["left"] == faulty[:, left].tolist()


def values_of_scope(text: str, scope: str) -> dict[str, list[int]]:
    """A small reader of value change dumps: the values of the scope's signals by time."""
    names, inside, now = {}, "", {}
    history: dict[str, list[int]] = {}
    header, _, body = text.partition("$enddefinitions $end")
    for line in header.splitlines():
        words = line.split()
        if words[0] == "$scope":
            inside = words[2]
        elif words[0] == "$var" and inside == scope:
            names[words[3]] = words[4]
    end = 0
    for line in filter(None, body.splitlines()):
        if line.startswith("#"):
            for _ in range(int(line[1:]) - end):
                for code, name in names.items():
                    history.setdefault(name, []).append(now.get(code, 0))
            end = int(line[1:])
        elif line.startswith("b"):
            digits, code = line[1:].split()
            now[code] = int(digits, 2)
        else:
            now[line[1:]] = int(line[0])
    return history


def test_waves_for_other_programs(sender: DesignTarget, tmp_path: Path) -> None:
    """A dump that is read back has the values of the traces; as FST it is the same."""
    sender.golden()
    design = sender.simulator.design
    golden, faulty = sender.traces(sender.rows(*one(sender, upset("data"), 3, 6)), 0)
    slots = {slot.name: i for i, slot in enumerate(design.slots)}
    pytest.importorskip("pylibfst")
    read = []
    for name in ("trial.vcd", "trial.fst"):
        write_waves(tmp_path / name, design.slots, golden, faulty)
        read.append(list(read_waves(tmp_path / name, ["data", "left", "differs"])))
    assert read[0] == read[1]
    now: dict[str, int] = {}
    for new in read[0]:
        now |= new
    assert now == {"data": golden[-1, slots["data"]], "left": golden[-1, slots["left"]], "differs": 1}
    if shutil.which("fst2vcd"):
        command = ["fst2vcd", "-f", str(tmp_path / "trial.fst"), "-o", str(tmp_path / "again.vcd")]
        subprocess.run(command, check=True, capture_output=True)
        assert list(read_waves(tmp_path / "again.vcd", ["data", "left", "differs"])) == read[0]
    with pytest.raises(TargetError, match=r"no signal 'dota'; did you mean 'data'"):
        list(read_waves(tmp_path / "trial.fst", ["dota"]))
    with pytest.raises(TargetError, match=r"must end in \.vcd or \.fst"):
        write_waves(tmp_path / "trial.lxt", design.slots, golden, faulty)
    (tmp_path / "broken.fst").write_bytes(b"\0" * 100)
    with pytest.raises(ValueError, match="not an FST file"):
        list(read_waves(tmp_path / "broken.fst", ["data"]))


DUMP = """module testbench;
  reg clk = 0, rst = 1, start = 0; wire valid, alarm; wire [7:0] data;
  sender dut(.clk(clk), .rst(rst), .start(start), .valid(valid), .data(data), .alarm(alarm));
  always #5 clk = ~clk;
  initial begin
    $dumpfile("FILE"); $dumpvars;
    #17 rst <= 0; @(posedge clk); start <= 1; @(posedge clk); start <= 0; #150 $finish;
  end
endmodule
"""


@needs_icarus
@pytest.mark.parametrize("ending", ["vcd", "fst"])
def test_stimulus_from_a_simulation(tmp_path: Path, ending: str) -> None:
    """The inputs of the outermost scope just before each rising edge, when others change with it."""
    if ending == "fst":
        pytest.importorskip("pylibfst")
    (tmp_path / "sender.v").write_text(HANDSHAKE)
    (tmp_path / "bench.v").write_text(DUMP.replace("FILE", str(tmp_path / f"in.{ending}")))
    subprocess.run(
        ["iverilog", "-g2012", "-o", tmp_path / "run", tmp_path / "bench.v", tmp_path / "sender.v"], check=True
    )
    subprocess.run(["vvp", tmp_path / "run", f"-{ending}"], check=True, capture_output=True)
    spec = HardwareTarget(
        sources=("sender.v",), top="sender", stimulus=f"in.{ending}", outputs=("data",), valid="valid", first_cycle=2
    )
    target = spec.located(tmp_path).open(Resources())
    assert isinstance(target, DesignTarget)
    edges = target.stimulus.cycles
    assert edges == 19
    assert target.stimulus.inputs["rst"][0].tolist() == [1, 1] + [0] * (edges - 2)
    assert target.stimulus.inputs["start"][0].tolist() == [int(t == 3) for t in range(edges)]
    assert target.golden().outputs.tolist() == [[6, 9, 12, 15]]


def test_dumps_of_several_clocks(tmp_path: Path) -> None:
    """A step for each time; what changes with a clock comes two steps later."""
    (tmp_path / "in.vcd").write_text(
        "$scope module t $end\n$var wire 1 ! clk $end\n$var wire 1 % rst $end\n$var wire 4 # d [3:0] $end\n"
        "$scope module inner $end\n$var wire 4 * d $end\n$upscope $end\n$upscope $end\n$enddefinitions $end\n"
        "#0\n0!\n1%\nb0011 #\nbx *\n#5\n1!\n#10\n0!\nb1010 #\n0%\n#12\nb1 #\n"
    )
    stimulus, _ = read_stimulus(tmp_path / "in.vcd", Design(read_verilog([DESIGNS / "clocks.v"], "edges")))
    assert stimulus.inputs["clk"][0].tolist() == [0, 1, 0, 0, 0, 0]
    assert stimulus.inputs["d"][0].tolist() == [3, 3, 3, 3, 10, 1]
    assert stimulus.inputs["rst"][0].tolist() == [1, 1, 1, 1, 0, 0]
    with pytest.raises(TargetError, match=r"has no signal 'clk_a'; did you mean 'clk'"):
        read_stimulus(tmp_path / "in.vcd", Design(read_verilog([DESIGNS / "clocks.v"], "crossing")))


def test_stimulus_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.arange(6).reshape(2, 3), labels=np.array([1, 0]), **{"memory:m": np.arange(4)})
    stimulus, labels = read_stimulus(tmp_path / "a.npz")
    assert stimulus.runs == 2 and stimulus.cycles == 3 and labels.tolist() == [1, 0]
    assert stimulus.memories["m"].tolist() == [0, 1, 2, 3]
    (tmp_path / "a.csv").write_text("a,b\n0,0x1f\n1,7\n")
    stimulus, _ = read_stimulus(tmp_path / "a.csv")
    assert stimulus.inputs["b"].tolist() == [[31, 7]]
    (tmp_path / "m.hex").write_text("// four words\n1f 2_0\n@4 ff /* last */\n")
    assert read_hex(tmp_path / "m.hex") == [31, 32, 0, 0, 255]
    np.savez(tmp_path / "b.npz", a=np.arange(6), b=np.arange(5))
    with pytest.raises(TargetError, match="same \\[runs, cycles\\]; got a \\[1, 6\\], b \\[1, 5\\]"):
        read_stimulus(tmp_path / "b.npz")
    with pytest.raises(TargetError, match="cannot read"):
        read_stimulus(tmp_path / "none.csv")


def test_own_design_from_a_campaign_file(tmp_path: Path) -> None:
    (tmp_path / "sender.v").write_text(HANDSHAKE)
    rows = [f"{int(t < 2)},{int(t == 3)}" for t in range(CYCLES)]
    (tmp_path / "in.csv").write_text("rst,start\n" + "\n".join(rows) + "\n")
    spec = HardwareTarget(
        sources="sender.v",
        top="sender",
        stimulus="in.csv",
        outputs="data",
        valid="valid",
        alarms="alarm",
        first_cycle=2,
    )
    target = spec.located(tmp_path).open(Resources())
    assert target.golden().outputs.tolist() == [[6, 9, 12, 15]]
