"""Cross-layer injection: the network runs in software, what a fault touches at register-transfer or gate level.

- :mod:`~saboteur.levels.crosslayer.lowering`: layers of an int8 network as matrix products
- :mod:`~saboteur.levels.crosslayer.mapping`, :mod:`~saboteur.levels.crosslayer.picture`: which processing element
  computes what, in which cycle
- :mod:`~saboteur.levels.crosslayer.arrays`, :mod:`~saboteur.levels.crosslayer.tiles`: arrays in HDL, and the errors
  that their faults leave in a layer's sums
- :mod:`~saboteur.levels.crosslayer.architecture`: the same for accelerators without HDL, from a description of
  their components
- :mod:`~saboteur.levels.crosslayer.machine`: either of them, as what a campaign's faults sit in
- :mod:`~saboteur.levels.crosslayer.suffix`: the rest of the network, for many faults at once
- :mod:`~saboteur.levels.crosslayer.spec`, :mod:`~saboteur.levels.crosslayer.target`: all of it as a campaign's target
"""
