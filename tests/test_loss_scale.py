from alignment.loss_scale import GROWTH_INTERVAL, LossScale


def test_it_halves_on_overflow_down_to_one_and_doubles_after_a_long_time() -> None:
    scale = LossScale(4.0)
    assert scale.can_shrink
    for expected in (2.0, 1.0, 1.0):
        scale.shrink()
        assert scale.value == expected
    assert not scale.can_shrink
    scale = LossScale(4.0)
    for _ in range(GROWTH_INTERVAL):
        assert scale.value == 4
        scale.note_sound_step()
    assert scale.value == 8 and scale.n_sound == 0


def test_one_is_no_scaling_and_stays() -> None:
    scale = LossScale()
    for _ in range(2 * GROWTH_INTERVAL):
        scale.note_sound_step()
    assert scale.value == 1
