"""The schedule that an engine's own text tells: read from made-up text, and from a real engine."""

from __future__ import annotations

import pytest

from schedule import CARDS, LAUNCH_SECONDS, schedule_of

# A convolution of 8 to 16 channels, a product of 100 rows by 32 × 64, and what lies between.
TEXT = """
  tensor={ alignment=128 dims={ 1 8 4 5 6 } name="x" strides={ 960 1 240 48 8 } type=half }
  tensor={ alignment=128 dims={ 16 8 3 3 3 } name="w_dconst" strides={ 216 1 72 24 8 } type=half }
  sub_tensor={ dims={ 1 16 4 5 6 } name="y" strides={ 1920 1 480 96 16 } type=half }
  tensor={ dims={ 1 16 4 5 6 } name="z" strides={ 1920 120 30 6 1 } type=float }
  tensor={ dims={ 100 32 } name="a" strides={ 32 1 } type=float }
  tensor={ dims={ 32 64 } name="b_const" strides={ 64 1 } type=float }
  tensor={ dims={ 100 64 } name="c" strides={ 64 1 } type=float }
main {
 label bb1:
  signal={ name="s" stream=0 event=1 layers="" }
  corrltn={ name="node_Conv" output={"y" } input={"x" "w_dconst" } stream=0 strides={ 1 1 1 } }
  wait={ name="s" stream=1 event=1 layers="" }
  function={ name=__myl_Cast fqn=__myl_Cast_0x1 args={ "y" "z" } input_args={ "y" "y" } output_args={ "z" } }
  fully_connected={ name="node_linear" output={"c" } input={"a" "b_const" } stream=0 }
  function={ name=_gemm_mha_v2 fqn=_gemm_mha_v2_0x2 args={ "c" } input_args={ "a" } output_args={ "c" } }
}
  using Kernel_traits = fmha::Kernel_traits_v2_flash_attention<
\tfmha::Ampere_hmma_fp32_traits,
\tfmha::Ampere_hmma_fp16_traits,
  corrltn={ name="of another program" output={"y" } input={"x" "w_dconst" } stream=0 }
"""  # noqa: E501


def test_text_between_bytes_is_read():
    binary = b"\x00\x01ab\xff" + TEXT.encode() + b"\x00\xfemain {}\x00"
    schedule = schedule_of(binary)
    assert [launch.kind for launch in schedule.launches] == [
        "corrltn",
        "function",
        "fully_connected",
        "function",
    ]
    convolution, cast, linear, attention = schedule.launches
    x, w, y, z = 8 * 120 * 2, 16 * 8 * 27 * 2, 16 * 120 * 2, 16 * 120 * 4
    assert schedule.bytes_of(convolution) == x + w + y
    assert schedule.bytes_of(cast) == y + z
    assert schedule.flop_of(convolution) == 2 * 16 * 120 * 8 * 27
    assert schedule.flop_of(linear) == 2 * 100 * 32 * 64
    assert schedule.flop_of(cast) == schedule.flop_of(attention) == 0
    summary = schedule.summary()
    assert summary["launches"] == 4
    card = CARDS[0]
    moved = (y + z) / card.bytes_per_second + LAUNCH_SECONDS
    assert schedule.seconds_of(cast, card) == pytest.approx(moved)
    assert summary["modelled_ms"][card.name] > 4e3 * LAUNCH_SECONDS


@pytest.mark.parametrize("content", [b"", b"nothing to read here", b"main {\n  and no end"])
def test_text_that_is_none_is_refused(content):
    with pytest.raises(ValueError, match="expected the text of an engine's program, found none"):
        schedule_of(content)
