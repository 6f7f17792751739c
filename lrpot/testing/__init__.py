"""The contract of a backbone as a check that anybody can run on their own.

    from lrpot.testing import check_backbone
    print(check_backbone(lambda: MyNet(features=16, cutoff=4.0)))

All checks are in float64 unless their name says otherwise, with noise on the weights, since layers that start at zero
would hide what lies before them. The crystals are triclinic and scale with the cutoff.
"""

from lrpot.testing.contract import CHECKS, GPU_CHECKS, CheckResult, ContractReport, check_backbone

__all__ = ["CHECKS", "GPU_CHECKS", "CheckResult", "ContractReport", "check_backbone"]
