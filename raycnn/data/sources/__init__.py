"""The kinds of data sets, one file each; their names are in `raycnn.config.components`."""
