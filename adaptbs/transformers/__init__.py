"""Hugging Face's Trainer with a batch that grows: `AdaptiveTrainer(model=model, args=args, train_dataset=dataset)`."""

from .flow import AdaptiveFlowCallback
from .trainer import AdaptiveTrainer, AdaptiveTrainerMixin

__all__ = ["AdaptiveFlowCallback", "AdaptiveTrainer", "AdaptiveTrainerMixin"]
