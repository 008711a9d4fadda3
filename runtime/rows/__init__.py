"""One answer while it is decoded: a state machine that asks for engine runs and takes in what they decide."""
