"""How far apart features are: a network that says the same of every image has collapsed.

Shapes in this file:
    N    images
    D    embed dim
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

RANK_EPS = 1e-7


def feature_std(features: Float[Tensor, "N D"]) -> Float[Tensor, ""]:
    """Return the spread of the features' directions: 1 where all are as likely, 0 where one is.

    It is the standard deviation over images of L2-normalised features, averaged over dimensions,
    times the root of D.

    Source:
        Chen & He, 2021, Exploring Simple Siamese Representation Learning,
        https://arxiv.org/abs/2011.10566, section 4.1; the root of D is a factor here, where the
        paper compares with 1 over it.
    """
    spread = F.normalize(features, dim=1).std(dim=0, correction=0)
    return spread.mean() * features.shape[1] ** 0.5


def effective_rank(features: Float[Tensor, "N D"]) -> Float[Tensor, ""]:
    """Return RankMe: how many dimensions the features fill, from 1 to the smaller of N and D.

    It is the exponential of the entropy of the singular values, divided by their sum. As in the
    paper, the mean is not taken off: features that differ little from one direction have rank 1.

    Source:
        Garrido et al., 2023, RankMe, https://arxiv.org/abs/2210.02885, section 3.1, equation 1.
    """
    values = torch.linalg.svdvals(features)
    # Features that are all zero have no values to divide; their rank is 1.
    total = values.sum().clamp(min=torch.finfo(values.dtype).tiny)
    share = values / total + RANK_EPS
    return (-(share * share.log()).sum()).exp()
