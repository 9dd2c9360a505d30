"""Mapping networks: latent code z to style w."""
