"""One training: a trial of a sweep as a Tune trainable around an SPG or RPG algorithm."""
