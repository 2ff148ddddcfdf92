"""Composing a stage: recipe, data, objective, engine, result; and the stages of a recipe."""
