"""Refusing a state that does not fit."""

from carrel.layers.state_shapes import check_state as check_state
