"""What the user writes: settings, YAML, Truss directories, names, weights files, starter projects."""
