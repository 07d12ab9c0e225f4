"""The steps before the network: foreground, intensities, affine alignment and preparing a pair."""
