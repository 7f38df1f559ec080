//! Convolutions: rows of outputs are shared between threads.

use ocelli_backend::ConvolutionDims;
use ocelli_kernels::{Convolution, Depthwise, unfold_windows};

use crate::CpuBackend;
use crate::buffer::Buffer;

impl CpuBackend {
    pub(crate) fn windows(&self, x: &Buffer, dims: ConvolutionDims) -> Buffer {
        let sizes = sizes(dims);
        let row = sizes.output()[1] * sizes.window_len();
        let picture = sizes.height * sizes.width * sizes.channels;
        assert_eq!(x.len(), dims.batch * picture, "{} values are not {dims:?}", x.len());
        let rows = sizes.output()[0];
        let mut out = self.buffer(dims.batch * rows * row);
        let parts = out.chunks_mut(row.max(1)).enumerate();
        self.split(dims.batch * rows * row, parts, |(at, out)| {
            let (picture, row) = (&x[at / rows * picture..][..picture], at % rows);
            unfold_windows(picture, sizes, row..row + 1, out);
        });
        out
    }

    pub(crate) fn depthwise_convolution(
        &self,
        x: &Buffer,
        weight: &Buffer,
        bias: Option<&Buffer>,
        dims: ConvolutionDims,
    ) -> Buffer {
        let repeated = (dims.multiplier > 1).then(|| self.repeated(x, dims.multiplier));
        let x = repeated.as_ref().unwrap_or(x);
        let sizes = Convolution { channels: dims.channels * dims.multiplier, ..sizes(dims) };
        let row = sizes.output()[1] * sizes.channels;
        let picture = sizes.height * sizes.width * sizes.channels;
        assert_eq!(x.len(), dims.batch * picture, "{} values are not {dims:?}", x.len());
        let rows = sizes.output()[0];
        let mut out = self.buffer(dims.batch * rows * row);
        let taps = sizes.kernel[0] * sizes.kernel[1];
        let parts = out.chunks_mut(row.max(1)).enumerate();
        self.split(dims.batch * rows * row * taps, parts, |(at, out)| {
            let (picture, row) = (&x[at / rows * picture..][..picture], at % rows);
            let problem = Depthwise { picture, weight, bias: bias.map(|bias| &**bias), sizes };
            self.shared.kernels.depthwise(&problem, row..row + 1, out);
        });
        out
    }

    /// Every value several times in a row.
    fn repeated(&self, x: &Buffer, times: usize) -> Buffer {
        let mut out = self.buffer(x.len() * times);
        for (out, &value) in out.chunks_exact_mut(times).zip(x.iter()) {
            out.fill(value);
        }
        out
    }
}

fn sizes(dims: ConvolutionDims) -> Convolution {
    let ConvolutionDims { height, width, channels, kernel, stride, padding, .. } = dims;
    Convolution { height, width, channels, kernel, stride, padding }
}
