"""The steps before the network: affine alignment and preparing a pair."""
