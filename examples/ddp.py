"""plain_torch.py on several processes. Each gets its slice of every batch.

    torchrun --nproc-per-node 2 examples/ddp.py
"""

import argparse

import torch
from plain_torch import BATCH_SIZE, EPOCHS, make_data
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from adaptbs import AdaptiveDataLoader


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, default=20_000)
    args = parser.parse_args()
    dist.init_process_group("gloo")  # with several GPUs "nccl", and move the model to this process's GPU
    torch.manual_seed(0)
    dataset, loss_func = make_data(args.samples), nn.CrossEntropyLoss()
    model = DistributedDataParallel(nn.Sequential(nn.Linear(50, 128), nn.ReLU(), nn.Linear(128, 10)))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)

    loader = AdaptiveDataLoader(  # (it gives each process its samples, with a DistributedSampler or without)
        dataset, BATCH_SIZE, shuffle=True, model=model, optimizer=optimizer
    )
    for epoch in loader.epochs(EPOCHS):
        losses = []
        for x, y in loader:
            loss = loss_func(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
        if dist.get_rank() == 0:
            mean = torch.stack(losses).mean().item()
            sizes = f"{loader.batch_size} a rank, {loader.global_batch_size} in all"
            print(f"epoch {epoch + 1}: {len(losses)} steps, loss {mean:.3f}, batch size now {sizes}")
    if dist.get_rank() == 0:
        print(loader.history)
        print(loader.noise_scale)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
