"""Read with torchvision's ImageFolder and torch's DataLoader."""

from common import MEAN, STD
from reading import Training, arguments
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

args = arguments()
steps = [
    transforms.Resize(args.size), transforms.CenterCrop(args.size), transforms.ToTensor(),
    transforms.Normalize(MEAN, STD),
]  # fmt: skip
images = ImageFolder(str(args.data), transforms.Compose(steps))
loader = DataLoader(
    images, args.batch, shuffle=True, num_workers=args.processes, persistent_workers=True
)
training = Training(args.size, len(images.classes))
for _ in range(args.epochs):
    training.epoch(loader)
