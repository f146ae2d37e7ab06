"""Video files: decoding, time stamps, which frames are sampled."""
