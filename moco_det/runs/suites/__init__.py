"""The matrix of runs: initialisations x settings x seeds, continued where it stopped."""
