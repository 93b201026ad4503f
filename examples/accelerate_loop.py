"""A loop with Hugging Face accelerate: gradient accumulation, a schedule and a checkpoint.

    python examples/accelerate_loop.py
    accelerate launch --cpu --num_processes 2 examples/accelerate_loop.py

adaptbs needs the marked lines, the third only to resume. `pip install "adaptbs[accelerate]"`
"""

import argparse

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, TensorDataset

from adaptbs.accelerate import adaptive  # (1)

EPOCHS, BATCH_SIZE, ACCUMULATION_STEPS = 4, 16, 2


def make_data(n: int) -> TensorDataset:
    """Ten noisy classes in 50 dimensions."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(10, (n,), generator=generator)
    centres = torch.randn(10, 50, generator=generator)
    return TensorDataset(centres[y] + 3 * torch.randn(n, 50, generator=generator), y)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--save", help="a folder to save the state in after each epoch")
    parser.add_argument("--resume", help="a folder to go on from")
    args = parser.parse_args()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATION_STEPS)
    set_seed(0)
    loader = DataLoader(make_data(args.samples), BATCH_SIZE, shuffle=True)
    model = nn.Sequential(nn.Linear(50, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer, loss_func = torch.optim.AdamW(model.parameters(), 1e-3), nn.CrossEntropyLoss()
    scheduler = OneCycleLR(optimizer, 3e-3, total_steps=EPOCHS * (-(-len(loader) // ACCUMULATION_STEPS)))
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    loader = adaptive(accelerator, loader, model=model, optimizer=optimizer, scheduler=scheduler, epochs=EPOCHS)  # (2)
    if args.resume:
        accelerator.load_state(args.resume)

    for epoch in range(loader.epoch, EPOCHS):  # (3)
        losses, right, steps = [], [], 0
        for x, y in loader:
            with accelerator.accumulate(model):
                scores = model(x)
                loss = loss_func(scores, y)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            losses.append(loss.detach())
            right.append(accelerator.gather_for_metrics(scores.argmax(1) == y))
            steps += accelerator.sync_gradients
        accuracy, rate = torch.cat(right).double().mean(), scheduler.get_last_lr()[0]
        accelerator.print(
            f"epoch {epoch + 1}: {steps} steps, loss {torch.stack(losses).mean():.3f}, right {accuracy:.3f} of "
            f"{len(torch.cat(right))}, learning rate {rate:.1e}, batch size now {loader.batch_size}"
        )
        if args.save:
            accelerator.save_state(args.save)  # after any step, also within an epoch
    accelerator.print(loader.history)
    accelerator.end_training()


if __name__ == "__main__":
    main()
