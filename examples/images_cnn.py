"""A convolutional network on scikit-learn's handwritten digits, as in torch's MNIST example.

    python examples/images_cnn.py

Without adaptbs: `loader = DataLoader(dataset, BATCH_SIZE, shuffle=True)`.
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import TensorDataset

from adaptbs import AdaptiveDataLoader

EPOCHS, BATCH_SIZE = 8, 16


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.dropout = nn.Dropout(0.25)
        self.fc = nn.Linear(512, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        return F.log_softmax(self.fc(self.dropout(x.flatten(1))), dim=1)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, default=1500, help="at most 1500: the rest of the 1797 is held out")
    args = parser.parse_args()
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    x, y = torch.from_numpy(images).float().view(-1, 1, 8, 8) / 16, torch.from_numpy(labels)
    samples = min(args.samples, 1500)
    dataset = TensorDataset(x[:samples], y[:samples])
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    scheduler = StepLR(optimizer, step_size=1, gamma=0.8)

    loader = AdaptiveDataLoader(
        dataset, BATCH_SIZE, shuffle=True,
        model=model, optimizer=optimizer, scheduler=scheduler, epochs=EPOCHS,
    )  # fmt: skip
    for epoch in range(1, EPOCHS + 1):
        model.train()
        for data, target in loader:
            optimizer.zero_grad()
            loss = F.nll_loss(model(data), target)
            loss.backward()
            optimizer.step()
        scheduler.step()
        model.eval()
        with torch.no_grad():
            correct = (model(x[1500:]).argmax(1) == y[1500:]).float().mean().item()
        print(f"epoch {epoch}: accuracy {correct:.1%}, batch size now {loader.batch_size}")
    print(loader.history)


if __name__ == "__main__":
    main()
