"""Which networks the zoo has: the smallest of every family, or one of two where parameters and multiply-adds disagree.

A family is one architecture: a module of timm, or where a module holds several, those of its networks whose names begin
alike. Pure transformers and mixers, whose only convolution cuts the image into patches, are none, and networks made for
tests of timm itself are no members. Of torchvision's detectors only one of those with the same backbone and heads over
the whole image is here.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TIMM = "1.0.31"
"""The version whose modules were looked through."""

FAMILIES: Mapping[str, Mapping[str, str]] = {
    "timm": {
        "repghost": "repghostnet_050", "mobileone": "mobileone_s0", "repvgg": "repvgg_a0", "repvit": "repvit_m0_9",
        "fastvit": "fastvit_t8", "ghostnetv3": "ghostnetv3_050", "lcnetv2": "lcnetv2_small", "lcnet": "lcnet_035",
        "mobilenetv4": "mobilenetv4_conv_small_035", "mobilenetv3": "mobilenetv3_small_050",
        "mobilenetv2": "mobilenetv2_035", "mobilenetv1": "mobilenetv1_100", "ghostnet": "ghostnet_050",
        "starnet": "starnet_s050", "tinynet": "tinynet_e", "mnasnet": "mnasnet_small", "semnasnet": "semnasnet_050",
        "spnasnet": "spnasnet_100", "fbnetc": "fbnetc_100", "fbnetv3": "fbnetv3_b", "mixnet": "mixnet_s",
        "mobilenet_edgetpu": "mobilenet_edgetpu_100", "ghostnetv2": "ghostnetv2_100",
        "edgenext": "edgenext_xx_small", "mobilevit": "mobilevit_xxs", "mobilevitv2": "mobilevitv2_050",
        "efficientvit_mit": "efficientvit_b0", "efficientvit_msra": "efficientvit_m0", "fasternet": "fasternet_t0",
        "convnext": "convnext_zepto_rms", "convnextv2": "convnextv2_atto", "xcit": "xcit_nano_12_p16_224",
        "regnetx": "regnetx_002", "regnety": "regnety_002", "swiftformer": "swiftformer_xs",
        "efficientformer_v2": "efficientformerv2_s0", "pvt_v2": "pvt_v2_b0", "hardcorenas": "hardcorenas_a",
        "efficientnet": "efficientnet_b0", "efficientnet_lite": "efficientnet_lite0",
        "efficientnet_es": "efficientnet_es_pruned", "efficientnetv2": "tf_efficientnetv2_b0", "rexnet": "rexnet_100",
        "rexnetr": "rexnetr_100", "resnet": "resnet10t", "hgnetv2": "hgnetv2_b0", "hgnet": "hgnet_tiny",
        "shvit": "shvit_s1", "efficientvim": "efficientvim_m1", "mambaout": "mambaout_femto",
        "tiny_vit": "tiny_vit_5m_224", "levit": "levit_128s", "levit_conv": "levit_conv_128s", "pit": "pit_ti_224",
        "coat": "coat_tiny", "dla": "dla46x_c", "hrnet": "hrnet_w18_small", "poolformer": "poolformer_s12",
        "poolformerv2": "poolformerv2_s12", "efficientformer": "efficientformer_l1", "cpubone": "cpubone_nano",
        "csatv2": "csatv2", "cspnext": "cspnext_tiny", "cs3darknet": "cs3darknet_s", "darknet": "darknet17",
        "cspresnet": "cspresnet50", "cspresnext": "cspresnext50", "sedarknet": "sedarknet21",
        "ese_vovnet": "ese_vovnet19b_slim_dw", "vovnet": "vovnet39a", "gernet": "gernet_s", "regnetz": "regnetz_005",
        "regnetv": "regnetv_040", "botnet": "botnet26t_256", "halonet": "halonet_h1",
        "lambda_resnet": "lambda_resnet26rpt_256", "bat_resnext": "bat_resnext26ts", "gcresnext": "gcresnext26ts",
        "ecaresnet": "ecaresnet26t", "seresnet": "seresnet18", "seresnext": "seresnext26ts", "resnext": "resnext26ts",
        "resnetaa": "resnetaa34d", "resnetblur": "resnetblur18", "resnetrs": "resnetrs50",
        "wide_resnet": "wide_resnet50_2", "legacy_seresnet": "legacy_seresnet18", "skresnet": "skresnet18",
        "resnest": "resnest14d", "res2net": "res2net50_14w_8s", "res2next": "res2next50", "resnetv2": "resnetv2_18",
        "nf_regnet": "nf_regnet_b0", "nf_resnet": "nf_resnet26", "eca_nfnet": "eca_nfnet_l0", "dpn": "dpn48b",
        "densenet": "densenet121", "densenetblur": "densenetblur121d", "selecsls": "selecsls42",
        "xception": "legacy_xception", "xception_aligned": "xception41p", "inception_v3": "inception_v3",
        "inception_v4": "inception_v4", "inception_resnet_v2": "inception_resnet_v2",
        "inception_next": "inception_next_atto", "iformer": "iformer_t", "lowformer": "lowformer_b0",
        "nextvit": "nextvit_small", "rdnet": "rdnet_tiny", "convmixer": "convmixer_1024_20_ks9_p14",
        "tresnet": "tresnet_m", "visformer": "visformer_tiny", "vgg": "vgg11", "vgg_bn": "vgg11_bn",
        "coatnet": "coatnet_nano_rw_224", "coatnext": "coatnext_nano_rw_224", "maxvit": "maxvit_pico_rw_256",
        "maxxvit": "maxxvit_rmlp_nano_rw_256", "convformer": "convformer_s18", "caformer": "caformer_s18",
        "gcvit": "gcvit_xxtiny", "focalnet": "focalnet_tiny_srf", "davit": "davit_tiny", "mvitv2": "mvitv2_tiny",
        "nest": "nest_tiny", "twins": "twins_pcpvt_small", "vitamin": "vitamin_small_224", "volo": "volo_d1_224",
        "vision_transformer_hybrid": "vit_tiny_r_s16_p8_224", "mobilenetv4_hybrid": "mobilenetv4_hybrid_medium_075",
        "mobilenetv5": "mobilenetv5_base", "nasnet": "nasnetalarge", "pnasnet": "pnasnet5large",
    },
    "torchvision": {
        "torchvision shufflenetv2": "shufflenet_v2_x0_5", "torchvision squeezenet": "squeezenet1_1",
        "torchvision mnasnet": "mnasnet0_5", "torchvision mobilenetv3": "mobilenet_v3_small",
        "torchvision mobilenetv2": "mobilenet_v2", "torchvision lraspp": "lraspp_mobilenet_v3_large",
        "torchvision ssdlite": "ssdlite320_mobilenet_v3_large", "torchvision regnetx": "regnet_x_400mf",
        "torchvision regnety": "regnet_y_400mf", "torchvision efficientnet": "efficientnet_b0",
        "torchvision googlenet": "googlenet", "torchvision densenet": "densenet121", "torchvision resnet": "resnet18",
        "torchvision deeplabv3": "deeplabv3_mobilenet_v3_large", "torchvision efficientnetv2": "efficientnet_v2_s",
        "torchvision resnext": "resnext50_32x4d", "torchvision wide_resnet": "wide_resnet50_2",
        "torchvision inception_v3": "inception_v3", "torchvision convnext": "convnext_tiny",
        "torchvision maxvit": "maxvit_t", "torchvision alexnet": "alexnet", "torchvision vgg": "vgg11",
        "torchvision vgg_bn": "vgg11_bn", "torchvision fcn": "fcn_resnet50",
        "torchvision fasterrcnn": "fasterrcnn_mobilenet_v3_large_320_fpn",
        "torchvision fasterrcnn_v2": "fasterrcnn_resnet50_fpn_v2", "torchvision fcos": "fcos_resnet50_fpn",
        "torchvision retinanet": "retinanet_resnet50_fpn", "torchvision retinanet_v2": "retinanet_resnet50_fpn_v2",
        "torchvision ssd": "ssd300_vgg16",
    },
    "ultralytics": {
        "yolov6": "yolov6n", "yolov9": "yolov9t", "yolov10": "yolov10n", "yolov5": "yolov5n", "yolov8": "yolov8n",
        "yolo11": "yolo11n", "yolo12": "yolo12n",
    },
}  # fmt: skip
"""By library and family, roughly by size."""

MULTI_BRANCH = frozenset(
    ("repghost", "mobileone", "repvgg", "repvit", "fastvit", "ghostnetv3", "lcnetv2", "yolov6", "yolov9", "yolov10")
)
"""Families that train with branches which are meant to become one convolution."""

WITHOUT_CONVOLUTIONS = frozenset(
    (
        "beit", "cait", "convit", "crossvit", "deepseek_vit", "deit", "eva", "gemma4_vit", "hiera", "hieradet_sam2",
        "mlp_mixer", "naflexvit", "qwen3_vit", "sequencer", "swin_transformer", "swin_transformer_v2",
        "swin_transformer_v2_cr", "tnt", "vision_transformer", "vision_transformer_relpos", "vision_transformer_sam",
    )
)  # fmt: skip
"""Modules of timm that are left out: attention, mixing and recurrence over patches, or one convolution at an end."""


@dataclass(frozen=True)
class Member:
    """A network of the zoo."""

    library: str
    family: str
    entry: str

    @property
    def name(self) -> str:
        """As networks of libraries are named everywhere."""
        return f"{self.library}:{self.entry}"


def members() -> list[Member]:
    """All of them, multi-branch families first."""
    found = [Member(library, family, entry) for library, of in FAMILIES.items() for family, entry in of.items()]
    return sorted(found, key=lambda member: member.family not in MULTI_BRANCH)


def modules_of_timm() -> dict[str, str]:
    """The module of timm that has each of its networks, by the networks' names."""
    timm: Any = importlib.import_module("timm")
    return {name: module for module in timm.list_modules() for name in timm.list_models(module=module)}
