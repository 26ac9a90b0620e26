import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import distributions as D

from models.agent import ACTION_HIGH, ACTION_LOW, Agent
from models.controller import PARAMETERS, Controller, act_batch
from models.inference import (
    FEW_FRAMES,
    PackedEncoder,
    for_inference,
    inference_encoder,
    tell_if_not_packed,
)
from models.mdrnn import MDRNN, Prediction, mdrnn_losses, mixture_nll
from models.vae import VAE, Encoder, sample_latent, vae_loss
from utils.checkpoint import load_weights
from utils.devices import fast_precision
from utils.evolution import component_basis
from utils.frames import pixels_to_unit


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_parameter_counts_of_the_paper():
    assert count(VAE()) == 4_348_547
    assert count(MDRNN()) == 384_071
    assert count(Controller()) == PARAMETERS == 867


def test_tensor_names_and_shapes_of_the_public_checkpoints():
    shapes = {
        name: tuple(tensor.shape)
        for module in (VAE(), MDRNN(), Controller())
        for name, tensor in module.state_dict().items()
    }
    assert shapes == {
        "encoder.conv1.weight": (32, 3, 4, 4),
        "encoder.conv1.bias": (32,),
        "encoder.conv2.weight": (64, 32, 4, 4),
        "encoder.conv2.bias": (64,),
        "encoder.conv3.weight": (128, 64, 4, 4),
        "encoder.conv3.bias": (128,),
        "encoder.conv4.weight": (256, 128, 4, 4),
        "encoder.conv4.bias": (256,),
        "encoder.fc_mu.weight": (32, 1024),
        "encoder.fc_mu.bias": (32,),
        "encoder.fc_logsigma.weight": (32, 1024),
        "encoder.fc_logsigma.bias": (32,),
        "decoder.fc1.weight": (1024, 32),
        "decoder.fc1.bias": (1024,),
        "decoder.deconv1.weight": (1024, 128, 5, 5),
        "decoder.deconv1.bias": (128,),
        "decoder.deconv2.weight": (128, 64, 5, 5),
        "decoder.deconv2.bias": (64,),
        "decoder.deconv3.weight": (64, 32, 6, 6),
        "decoder.deconv3.bias": (32,),
        "decoder.deconv4.weight": (32, 3, 6, 6),
        "decoder.deconv4.bias": (3,),
        "rnn.weight_ih_l0": (1024, 35),
        "rnn.weight_hh_l0": (1024, 256),
        "rnn.bias_ih_l0": (1024,),
        "rnn.bias_hh_l0": (1024,),
        "gmm_linear.weight": (327, 256),
        "gmm_linear.bias": (327,),
        "fc.weight": (3, 288),
        "fc.bias": (3,),
    }


def test_vae_shapes_and_range():
    frames = torch.rand(5, 3, 64, 64)
    reconstruction, mu, logsigma = VAE()(frames)
    assert reconstruction.shape == frames.shape
    assert mu.shape == logsigma.shape == (5, 32)
    assert reconstruction.min() >= 0 and reconstruction.max() <= 1


def test_encoder_flattens_channels_first_whatever_the_memory_layout():
    # The layout of the public checkpoints: features in (C, H, W) order, frames (3, H, W).
    encoder = Encoder()
    frames = torch.rand(4, 3, 64, 64)
    x = frames
    for conv in (encoder.conv1, encoder.conv2, encoder.conv3, encoder.conv4):
        x = F.relu(conv(x))
    expected = encoder.fc_mu(x.reshape(4, -1))
    torch.testing.assert_close(encoder(frames)[0], expected)
    channels_last = frames.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(encoder.mean(channels_last), expected, atol=1e-5, rtol=1e-4)


def test_decoder_is_the_four_transposed_convolutions():
    decoder = VAE().decoder
    z = torch.randn(3, 32)
    x = F.relu(decoder.fc1(z))[:, :, None, None]
    for deconv in (decoder.deconv1, decoder.deconv2, decoder.deconv3):
        x = F.relu(deconv(x))
    torch.testing.assert_close(decoder(z), torch.sigmoid(decoder.deconv4(x)), atol=1e-5, rtol=1e-4)


def test_vae_loss_terms_are_means_over_frames_of_sums():
    frames, mu, logsigma = torch.rand(6, 3, 64, 64), torch.randn(6, 32), 0.3 * torch.randn(6, 32)
    reconstruction = torch.rand_like(frames)
    squared_error, kl = vae_loss(reconstruction, frames, mu, logsigma)
    expected = D.kl_divergence(D.Normal(mu, logsigma.exp()), D.Normal(0, 1)).sum(1).mean()
    torch.testing.assert_close(kl, expected)
    summed = F.mse_loss(reconstruction, frames, reduction="sum")
    torch.testing.assert_close(squared_error, summed / 6)


def test_sampled_latents_have_the_posterior_mean_and_deviation():
    torch.manual_seed(0)
    mu, logsigma = torch.tensor([2.0, -1.0]), torch.tensor([0.5, -2.0])
    z = sample_latent(mu.expand(200_000, 2), logsigma.expand(200_000, 2))
    torch.testing.assert_close(z.mean(0), mu, atol=0.02, rtol=0)
    torch.testing.assert_close(z.std(0), logsigma.exp(), atol=0.02, rtol=0.01)


def random_prediction(*shape):
    out = MDRNN().predict(torch.randn(*shape, 256))
    return out._replace(mu=out.mu * 3, logsigma=out.logsigma * 3)


def test_mixture_likelihood_equals_torch_distributions():
    prediction, target = random_prediction(7, 4), torch.randn(7, 4, 32)
    mixture = D.MixtureSameFamily(
        D.Categorical(logits=prediction.logpi),
        D.Independent(D.Normal(prediction.mu, prediction.logsigma.exp()), 1),
    )
    torch.testing.assert_close(mixture_nll(prediction, target), -mixture.log_prob(target).mean())


def test_mixture_likelihood_of_far_targets_is_finite():
    prediction = random_prediction(2, 3)
    loss = mixture_nll(prediction, torch.full((2, 3, 32), 1e4))
    assert torch.isfinite(loss) and loss > 1e6


def test_output_layer_order_is_that_of_the_public_checkpoints():
    model = MDRNN()
    hidden = torch.randn(2, 3, 256)
    out = model.gmm_linear(hidden)
    prediction = model.predict(hidden)
    torch.testing.assert_close(prediction.mu[..., 1, 0], out[..., 32])
    torch.testing.assert_close(prediction.logsigma[..., 0, 0], out[..., 160])
    torch.testing.assert_close(prediction.logpi, F.log_softmax(out[..., 320:325], -1))
    torch.testing.assert_close(prediction.reward, out[..., 325])
    torch.testing.assert_close(prediction.terminal, out[..., 326])


@pytest.mark.parametrize("include_reward, values", [(False, 33), (True, 34)])
def test_mdrnn_loss_is_divided_by_the_number_of_predicted_values(include_reward, values):
    prediction = random_prediction(5, 2)
    target, rewards = torch.randn(5, 2, 32), torch.randn(5, 2)
    terminals = (torch.rand(5, 2) < 0.5).float()
    terms = mdrnn_losses(prediction, target, rewards, terminals, include_reward)
    expected = mixture_nll(prediction, target)
    expected = expected + F.binary_cross_entropy(torch.sigmoid(prediction.terminal), terminals)
    if include_reward:
        expected = expected + (prediction.reward - rewards).square().mean()
    torch.testing.assert_close(terms["loss"], expected / values)
    assert ("mse" in terms) == include_reward


def test_steps_of_the_cell_equal_the_sequence_model():
    model = MDRNN()
    actions, latents = torch.randn(12, 4, 3), torch.randn(12, 4, 32)
    expected: Prediction = model(actions, latents)
    h = c = torch.zeros(4, 256)
    for t in range(12):
        h, c = model.step(actions[t], latents[t], h, c)
        for got, want in zip(model.predict(h), expected, strict=True):
            torch.testing.assert_close(got, want[t], atol=1e-5, rtol=1e-4)


def test_mdrnn_reads_the_action_before_the_latent():
    model = MDRNN()
    with torch.no_grad():
        model.rnn.weight_ih_l0[:, :3] = 0  # blind to actions
    latents = torch.randn(4, 2, 32)
    a, b = (model(torch.randn(4, 2, 3), latents).mu for _ in range(2))
    torch.testing.assert_close(a, b)


def test_batch_of_controllers_equals_each_alone():
    controllers = [Controller() for _ in range(5)]
    latent, h = torch.randn(5, 32), torch.randn(5, 256)
    parameters = torch.stack([c.flat_parameters() for c in controllers])
    alone = torch.cat([c(latent[i : i + 1], h[i : i + 1]) for i, c in enumerate(controllers)])
    torch.testing.assert_close(act_batch(parameters, latent, h), alone, atol=1e-5, rtol=1e-4)
    again = Controller().load_flat(parameters[3])
    torch.testing.assert_close(again.fc.weight, controllers[3].fc.weight)
    torch.testing.assert_close(again.fc.bias, controllers[3].fc.bias)


def test_squashed_actions_are_those_of_the_paper():
    agent = Agent(VAE().encoder, MDRNN(), torch.device("cpu"), torch.float32, squash=True)
    controllers = torch.randn(4, PARAMETERS)
    mu, h = torch.randn(4, 32), torch.randn(4, 256)
    raw = act_batch(controllers, mu, h).double().numpy()
    want = np.stack(
        [np.tanh(raw[:, 0]), 1 / (1 + np.exp(-raw[:, 1])), 1 / (1 + np.exp(-raw[:, 2]))], 1
    )
    np.testing.assert_allclose(agent.act(controllers, mu, h).numpy(), want, atol=1e-6)


@pytest.mark.parametrize("precision, tolerance", [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
def test_the_encoder_for_inference_is_the_encoder(precision, tolerance):
    encoder, cpu = Encoder(), torch.device("cpu")
    if precision not in (torch.float32, fast_precision(cpu)):
        pytest.skip("needs bfloat16 in the processor")
    shipped = Path(__file__).parent.parent / "pretrained/vae/best.tar"
    load_weights(encoder, shipped, part="encoder.")
    plain = Encoder().to(precision, memory_format=torch.channels_last)
    plain.load_state_dict(encoder.state_dict())
    packed = inference_encoder(encoder, cpu, precision)
    assert isinstance(packed, PackedEncoder) == torch.backends.mkldnn.is_available()
    for n in (1, 7, FEW_FRAMES, FEW_FRAMES + 1):
        frames = torch.randint(0, 256, (n, 64, 64, 3), dtype=torch.uint8)
        x = pixels_to_unit(frames, precision)
        with torch.inference_mode():
            mu, logsigma = plain(x)
            for got, want in zip((*packed(x), packed.mean(x)), (mu, logsigma, mu), strict=True):
                torch.testing.assert_close(got, want.float(), atol=tolerance, rtol=tolerance)


def test_mu_is_not_rounded_to_bfloat16():
    """What the convolutions give, its linear layer takes in float32, with weights as they are."""
    encoder = Encoder()
    fast = for_inference(copy.deepcopy(encoder), torch.bfloat16)
    assert torch.equal(fast.fc_mu.weight, encoder.fc_mu.weight)
    with torch.inference_mode():
        x = torch.rand(5, 3, 64, 64).to(torch.bfloat16, memory_format=torch.channels_last)
        mu, logsigma = fast(x)
        want = encoder.fc_mu(fast.features(x).float())
    torch.testing.assert_close(mu, want, atol=1e-6, rtol=1e-6)
    assert mu.dtype == logsigma.dtype == torch.float32
    assert not torch.equal(mu, mu.bfloat16().float())


def test_a_torch_that_cannot_pack_encodes_all_the_same(monkeypatch, capsys):
    encoder, cpu = Encoder(), torch.device("cpu")
    x = torch.rand(3, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    tell_if_not_packed(cpu)
    assert ("not packed" in capsys.readouterr().out) != torch.backends.mkldnn.is_available()
    monkeypatch.setattr(torch.ops, "mkldnn", object())  # without its operators
    plain = inference_encoder(encoder, cpu, torch.float32)
    assert not isinstance(plain, PackedEncoder)
    tell_if_not_packed(cpu)
    assert "not packed" in capsys.readouterr().out
    torch.testing.assert_close(plain(x), encoder(x))


def test_an_agent_without_memory_acts_on_z_alone():
    vae, controller = VAE(), Controller(hidden_size=0)
    assert controller.flat_parameters().numel() == 99
    agent = Agent(vae.encoder, None, torch.device("cpu"), torch.float32)
    frames = torch.randint(0, 256, (6, 64, 64, 3), dtype=torch.uint8)
    h, c = agent.initial_state(6)
    assert h.shape == c.shape == (6, 0)
    action, h, c = agent.step(frames, controller.flat_parameters().expand(6, -1), h, c)
    with torch.inference_mode():
        mu, _ = vae.encoder(pixels_to_unit(frames))
        want = mu @ controller.fc.weight.T + controller.fc.bias
    want = torch.minimum(torch.maximum(want, ACTION_LOW), ACTION_HIGH)
    torch.testing.assert_close(action, want, atol=1e-4, rtol=1e-4)
    assert h.shape == c.shape == (6, 0)


def test_agent_step_is_encode_act_recur_with_the_executed_action():
    vae, mdrnn, controller = VAE(), MDRNN(), Controller()
    with torch.no_grad():
        controller.fc.weight.mul_(50)  # so that actions must be clipped
    frames = torch.randint(0, 256, (6, 64, 64, 3), dtype=torch.uint8)
    h, c = torch.randn(6, 256), torch.randn(6, 256)
    with torch.inference_mode():
        mu, _ = vae.encoder(pixels_to_unit(frames))
        raw = controller(mu, h)
        action = torch.stack(
            [raw[:, 0].clamp(-1, 1), raw[:, 1].clamp(0, 1), raw[:, 2].clamp(0, 1)], dim=1
        )
        assert not torch.equal(raw, action)
        next_h, next_c = mdrnn.step(action, mu, h, c)

    agent = Agent(vae.encoder, mdrnn, torch.device("cpu"), torch.float32)
    parameters = controller.flat_parameters().expand(6, -1)
    got = agent.step(frames, parameters, h, c)
    for g, want in zip(got, (action, next_h, next_c), strict=True):
        torch.testing.assert_close(g, want, atol=1e-4, rtol=1e-4)
    assert not hasattr(agent, "decoder")


def test_a_step_in_components_changes_the_actions_alike_in_each_of_them():
    """The actions of a step are computed by the controller, on inputs as uneven as z and h are."""
    generator = np.random.default_rng(0)
    variances = np.append(np.logspace(1, -3, 9), 0)
    axes = np.linalg.qr(generator.standard_normal((10, 10)))[0]
    # With exactly this mean and covariance:
    parts = generator.standard_normal((500, 10))
    parts = np.linalg.qr(parts - parts.mean(0))[0] * np.sqrt(500 * variances)
    mean = generator.standard_normal(10)
    seen = mean + parts @ axes.T
    covariance = axes * variances @ axes.T

    def actions(parameters):  # (P,) -> (500, 3)
        many = torch.from_numpy(parameters).expand(500, -1)
        return act_batch(many, torch.from_numpy(seen), torch.empty(500, 0)).numpy()

    basis = component_basis(mean, covariance, 4)
    # Steps are sums of the basis' rows with independent factors of variance 1.
    done = np.array([actions(row) for row in basis])  # (15, 500, 3)
    np.testing.assert_allclose(np.square(done).mean(1).sum(0), 1)
    # Each row is one action's, and follows one component, or is constant.
    for row, of_row in enumerate(done):
        action, component = divmod(row, 5)
        assert not np.delete(of_row, action, axis=1).any()
        want = np.ones(500) if component == 4 else parts[:, component] / variances[component] ** 0.5
        np.testing.assert_allclose(np.abs(of_row[:, action]), np.abs(want) / 5**0.5, atol=1e-6)
    # What does not vary has no direction.
    assert component_basis(mean, covariance, 10).shape == (30, 33)
