"""Units of text that the Talker points at: the UTF-8 bytes of a sentence between BEGIN and END."""

BEGIN, END, PAD, UNITS = 256, 257, 258, 259
