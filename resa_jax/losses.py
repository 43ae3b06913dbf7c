"""The pure losses of all methods, as functions of plain arrays."""

from resa_jax.methods.barlow_twins import barlow_twins_loss
from resa_jax.methods.byol import byol_loss
from resa_jax.methods.cw_rgp import cw_rgp_loss
from resa_jax.methods.dino import dino_center, dino_loss
from resa_jax.methods.intl import intl_loss
from resa_jax.methods.mec import mec_loss
from resa_jax.methods.mocov3 import mocov3_loss
from resa_jax.methods.prototypes import prototype_scores, swav_assignment
from resa_jax.methods.resa_loss import resa_loss, sinkhorn_knopp
from resa_jax.methods.simclr import simclr_loss
from resa_jax.methods.simsiam import simsiam_loss
from resa_jax.methods.swav import swav_loss
from resa_jax.methods.vicreg import vicreg_loss
from resa_jax.methods.wmse import wmse_loss


__all__ = [
    "barlow_twins_loss",
    "byol_loss",
    "cw_rgp_loss",
    "dino_center",
    "dino_loss",
    "intl_loss",
    "mec_loss",
    "mocov3_loss",
    "prototype_scores",
    "resa_loss",
    "simclr_loss",
    "simsiam_loss",
    "sinkhorn_knopp",
    "swav_assignment",
    "swav_loss",
    "vicreg_loss",
    "wmse_loss",
]
