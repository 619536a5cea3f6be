"""Hardware level: faults in HDL designs at register-transfer and gate level, many faulty machines side by side.

- :mod:`~saboteur.levels.hardware.spec`: what a campaign file says
- :mod:`~saboteur.levels.hardware.importing`: Verilog, SystemVerilog and VHDL to cells, by Yosys
- :mod:`~saboteur.levels.hardware.library`: what cells of a Liberty file are made of
- :mod:`~saboteur.levels.hardware.netlist`: the elaborated design: slots, nodes and their order
- :mod:`~saboteur.levels.hardware.compile`: native code in which each lane of a word is a machine
- :mod:`~saboteur.levels.hardware.simulate`: golden runs and fault-parallel runs
- :mod:`~saboteur.levels.hardware.sites`, :mod:`~saboteur.levels.hardware.models`: where and how a design fails
- :mod:`~saboteur.levels.hardware.collapse`: stuck-at faults of which one stands for many
- :mod:`~saboteur.levels.hardware.testbench`: stimuli, strobes, safety mechanisms, answers
- :mod:`~saboteur.levels.hardware.target`: all of it as a campaign's target
- :mod:`~saboteur.levels.hardware.waves`: waveforms and the path of an error
- :mod:`~saboteur.levels.hardware.designs`: systolic arrays and network pipelines that ship

A machine is one copy of the design with its own faults. Time is in cycles of the one clock, or in steps where a design
has several clocks; values have two states, with registers at 0 where nothing says otherwise (the golden run is refused
if that shows in the answer).
"""
