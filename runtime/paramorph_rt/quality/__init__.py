"""How far a result can be believed: checks of the pair before, and one number after."""
