import torch

from encoders.layers.subject_layers import SubjectLayers


def test_identity_start_is_a_no_op_for_everyone():
    data = torch.randn(5, 7, 11)
    layers = SubjectLayers(7, 4, init="identity")
    assert torch.equal(layers(data, torch.arange(5)), data)


def test_published_start_keeps_the_variance():
    torch.manual_seed(0)
    layers = SubjectLayers(200, 3)
    assert layers.weight.shape == (3, 200, 200)
    assert abs(layers.weight.std().item() * 200**0.5 - 1) < 0.01


def test_each_sample_gets_its_own_persons_matrix():
    torch.manual_seed(0)
    layers, data, subject = SubjectLayers(6, 3), torch.randn(4, 6, 5), torch.tensor([2, 0, 1, 2])
    for row, person in enumerate(subject):
        expected = layers.weight[person] @ data[row]
        torch.testing.assert_close(layers(data, subject)[row], expected)


def test_unknown_person_gets_the_mean_matrix():
    torch.manual_seed(0)
    layers, data = SubjectLayers(6, 3), torch.randn(2, 6, 5)
    out = layers(data, torch.tensor([3, 3]))
    torch.testing.assert_close(out, layers.weight.mean(0) @ data)


def test_a_batch_trains_only_its_own_people():
    torch.manual_seed(0)
    layers = SubjectLayers(6, 3)
    layers(torch.randn(2, 6, 5), torch.tensor([1, 1])).square().sum().backward()
    per_person = layers.weight.grad.abs().sum((1, 2))
    assert per_person[1] > 0 and per_person[0] == 0 and per_person[2] == 0
