"""What the numbers mean together: several campaigns at different levels, side by side.

- :mod:`~saboteur.reliability.levels`: one network at several levels, layer by layer, against the most exact one; how
  faithful an error model or a cheaper level is
- :mod:`~saboteur.reliability.learning`: an error model from a campaign
- :mod:`~saboteur.reliability.hybrid`: two campaigns at two levels as one estimate
"""
