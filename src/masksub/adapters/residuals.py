"""Blocks whose residual branches and dropouts are not found by the names that timm gives them.

By qualified class name, so that no library is imported. An entry that a version of a library doesn't have is passed
over.
"""

from masksub.core.dropouts import register_dropouts
from masksub.core.residual import register_exits

_BERT_LIKE = ("attention.output.dropout", "output.dropout")
_VIT_LIKE = ("dropout", *_BERT_LIKE)  # one dropout for both branches (transformers 5), or one each (transformers 4)

EXITS: dict[str, tuple[str, ...]] = {
    "torchvision.models.vision_transformer.EncoderBlock": ("dropout", "mlp"),
    "torchvision.models.resnet.BasicBlock": ("bn2",),
    "torchvision.models.resnet.Bottleneck": ("bn3",),
    "torchvision.models.regnet.ResBottleneckBlock": ("f",),
    "transformers.models.vit.modeling_vit.ViTLayer": _VIT_LIKE,
    "transformers.models.deit.modeling_deit.DeiTLayer": _VIT_LIKE,
    "transformers.models.audio_spectrogram_transformer.modeling_audio_spectrogram_transformer.ASTLayer": _VIT_LIKE,
    "transformers.models.swin.modeling_swin.SwinLayer": ("mlp", "output"),  # beside its drop_path, for attention alone
    "transformers.models.clip.modeling_clip.CLIPEncoderLayer": ("self_attn", "mlp"),
    "transformers.models.siglip.modeling_siglip.SiglipEncoderLayer": ("self_attn", "mlp"),
    "transformers.models.bert.modeling_bert.BertLayer": _BERT_LIKE,
    "transformers.models.roberta.modeling_roberta.RobertaLayer": _BERT_LIKE,
    "transformers.models.xlm_roberta.modeling_xlm_roberta.XLMRobertaLayer": _BERT_LIKE,
    "transformers.models.electra.modeling_electra.ElectraLayer": _BERT_LIKE,
    "transformers.models.deberta_v2.modeling_deberta_v2.DebertaV2Layer": _BERT_LIKE,
    "transformers.models.camembert.modeling_camembert.CamembertLayer": _BERT_LIKE,
    "transformers.models.data2vec.modeling_data2vec_text.Data2VecTextLayer": _BERT_LIKE,
    "transformers.models.ernie.modeling_ernie.ErnieLayer": _BERT_LIKE,
    "transformers.models.megatron_bert.modeling_megatron_bert.MegatronBertLayer": _BERT_LIKE,
    "transformers.models.rembert.modeling_rembert.RemBertLayer": _BERT_LIKE,
    "transformers.models.roberta_prelayernorm.modeling_roberta_prelayernorm.RobertaPreLayerNormLayer": _BERT_LIKE,
    "transformers.models.vit_msn.modeling_vit_msn.ViTMSNLayer": _VIT_LIKE,
    "transformers.models.ijepa.modeling_ijepa.IJepaLayer": _VIT_LIKE,
    "transformers.models.metaclip_2.modeling_metaclip_2.MetaClip2EncoderLayer": ("self_attn", "mlp"),
    "transformers.models.distilbert.modeling_distilbert.TransformerBlock": ("attention", "ffn"),
    "transformers.models.albert.modeling_albert.AlbertLayer": ("attention.output_dropout", "ffn_output"),
    "transformers.models.modernbert.modeling_modernbert.ModernBertEncoderLayer": ("attn", "mlp"),
}
"""By block: what its residual branches end with."""

DROPOUTS: dict[str, tuple[str, ...]] = {
    "": ("proj_drop", "drop2"),  # timm's names
    "torchvision.models.vision_transformer.EncoderBlock": ("dropout",),
    "torchvision.ops.misc.MLP": ("4",),  # linear, activation, dropout, linear, dropout
    "transformers.models.vit.modeling_vit.ViTLayer": _VIT_LIKE,
    "transformers.models.deit.modeling_deit.DeiTLayer": _VIT_LIKE,
    "transformers.models.audio_spectrogram_transformer.modeling_audio_spectrogram_transformer.ASTLayer": _VIT_LIKE,
    "transformers.models.beit.modeling_beit.BeitLayer": _VIT_LIKE,
    "transformers.models.swin.modeling_swin.SwinLayer": _VIT_LIKE,
    "transformers.models.swinv2.modeling_swinv2.Swinv2Layer": _VIT_LIKE,
    "transformers.models.data2vec.modeling_data2vec_vision.Data2VecVisionLayer": _VIT_LIKE,
    "transformers.models.bert.modeling_bert.BertLayer": _BERT_LIKE,
    "transformers.models.roberta.modeling_roberta.RobertaLayer": _BERT_LIKE,
    "transformers.models.xlm_roberta.modeling_xlm_roberta.XLMRobertaLayer": _BERT_LIKE,
    "transformers.models.electra.modeling_electra.ElectraLayer": _BERT_LIKE,
    "transformers.models.deberta_v2.modeling_deberta_v2.DebertaV2Layer": _BERT_LIKE,
    "transformers.models.distilbert.modeling_distilbert.FFN": ("dropout",),
    "transformers.models.albert.modeling_albert.AlbertAttention": ("output_dropout",),
    "transformers.models.modernbert.modeling_modernbert.ModernBertAttention": ("out_drop",),
}
"""By class, "" for any: its dropouts on the outputs of attention and MLP."""

register_exits(EXITS)
register_dropouts(DROPOUTS)
