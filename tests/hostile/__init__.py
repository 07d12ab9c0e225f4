"""Malformed inputs, kills, full disks, races: each case names the promise that it checks."""
