"""Software level: faults in a model's weights, activations, operators, connections and hidden states."""
