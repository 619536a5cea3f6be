"""Hardware level: faults in HDL designs at register-transfer and gate level, many faulty machines side by side.

- :mod:`~saboteur.levels.hardware.importing`: Verilog to cells, by Yosys
- :mod:`~saboteur.levels.hardware.netlist`: the elaborated design: slots, nodes and their order
- :mod:`~saboteur.levels.hardware.compile`: native code in which each lane of a word is a machine
- :mod:`~saboteur.levels.hardware.simulate`: golden runs and fault-parallel runs
- :mod:`~saboteur.levels.hardware.testbench`: stimuli, strobes, safety mechanisms
- :mod:`~saboteur.levels.hardware.spec`: what a campaign file says
"""
