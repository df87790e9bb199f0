import torch
import torch.nn.functional as F

from muomni.training.objectives.contrastive import contrastive_loss
from tests.model.encoders.test_auxiliary_heads import captions, draw, make_contrastive


def test_contrastive_loss_by_its_definition():
    head = make_contrastive()
    counts, lengths = [3, 1, 4, 2], [2, 3, 1]
    tokens, embeddings = draw(10, 8), draw(6, 6, seed=1)
    chosen, groups = [2, 0, 3], [7, 5, 7]
    images = [part.mean(0) for part in torch.split(tokens, counts)]
    images = [F.normalize(head.image(images[i]), dim=0) for i in chosen]
    texts = [part.mean(0) for part in torch.split(embeddings, lengths)]
    texts = [F.normalize(head.text(F.layer_norm(x, x.shape)), dim=0) for x in texts]
    total = torch.zeros((), dtype=torch.float64)
    for i in range(3):
        others = [j for j in range(3) if j == i or groups[j] != groups[i]]
        for pairs in ([(i, j) for j in others], [(j, i) for j in others]):
            scores = torch.stack([images[a] @ texts[b] / 0.07 for a, b in pairs])
            total = total - 0.5 * scores.log_softmax(0)[others.index(i)]
    loss = contrastive_loss(head, tokens, counts, embeddings, captions(lengths, chosen, groups))
    torch.testing.assert_close(loss, total)


@torch.no_grad()
def test_one_caption_or_one_meaning_costs_nothing():
    head = make_contrastive()
    tokens, embeddings = draw(4, 8), draw(4, 6)
    assert float(contrastive_loss(head, tokens, [4], embeddings, captions([4], [0], [0]))) == 0
    assert float(contrastive_loss(head, tokens, [2, 2], embeddings, captions([1, 3], [0, 1], [3, 3]))) == 0


def test_captions_do_not_pull_the_embedding():
    head = make_contrastive()
    tokens, embeddings = draw(4, 8).requires_grad_(), draw(4, 6).requires_grad_()
    contrastive_loss(head, tokens, [2, 2], embeddings, captions([1, 3], [0, 1], [0, 1])).backward()
    assert embeddings.grad is None
    assert bool(tokens.grad.any())
    assert all(bool(parameter.grad.any()) for parameter in head.parameters())


def test_pictures_find_their_captions():
    head = make_contrastive(torch.float32)
    tokens, embeddings = draw(12, 8, dtype=torch.float32), 0.02 * draw(8, 6, seed=1, dtype=torch.float32)
    pairs = captions([2, 2, 2, 2], [0, 1, 2, 3], [0, 1, 2, 3])
    counts = [3, 3, 3, 3]
    optimizer = torch.optim.Adam([*head.parameters()], lr=0.02)
    for _ in range(100):
        optimizer.zero_grad()
        loss = contrastive_loss(head, tokens, counts, embeddings, pairs)
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.1
    scores = head.images(tokens, counts) @ head.texts(embeddings, pairs.lengths).T
    assert scores.argmax(1).tolist() == [0, 1, 2, 3]
