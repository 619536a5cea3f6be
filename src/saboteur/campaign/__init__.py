"""One assessment: the campaign as a value, its plan, its runner, its store."""
