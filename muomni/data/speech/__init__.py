"""Speech data: recordings, synthesis, spoken form of text, and forced alignment."""
