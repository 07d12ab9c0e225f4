"""Where voxels are: grids, displacement fields, their composition, inversion, and resampling."""
