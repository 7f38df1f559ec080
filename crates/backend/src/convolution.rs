//! Convolutions over pictures that lie channels last, `[N, height, width, C]`.

use crate::error::Result;
use crate::layers::Linear;
use crate::ops::{Activation, Backend, ConvolutionDims};
use crate::precision::Role;
use crate::tensor::Tensor;
use crate::weights::Weights;

/// How the windows of a convolution lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Height and width of the window.
    pub kernel: [usize; 2],
    /// Steps between windows, down and across.
    pub stride: [usize; 2],
    /// Rows of zeros above and below, columns of zeros left and right.
    pub padding: [usize; 2],
}

impl Windows {
    /// Square windows of a side, so padded that a stride of 1 keeps the picture's size.
    pub fn square(side: usize, stride: usize) -> Self {
        Self { kernel: [side; 2], stride: [stride; 2], padding: [side / 2; 2] }
    }

    #[track_caller]
    fn dims<B: Backend>(&self, x: &Tensor<B>, multiplier: usize) -> ConvolutionDims {
        let &[batch, height, width, channels] = x.shape() else {
            panic!("expected [N, height, width, C], not {:?}", x.shape())
        };
        let Self { kernel, stride, padding } = *self;
        ConvolutionDims { batch, height, width, channels, multiplier, kernel, stride, padding }
    }
}

/// A convolution in which every output sees all channels.
pub struct Convolution<B: Backend> {
    linear: Linear<B>,
    windows: Windows,
}

impl<B: Backend> Convolution<B> {
    /// `[N, height, width, C]` -> `[N, output height, output width, out]`.
    #[track_caller]
    pub fn forward(&self, x: &Tensor<B>) -> Tensor<B> {
        self.forward_then(x, Activation::None)
    }

    /// [`Self::forward`], activated.
    #[track_caller]
    pub fn forward_then(&self, x: &Tensor<B>, activation: Activation) -> Tensor<B> {
        if self.windows == Windows::square(1, 1) {
            return self.linear.forward_then(x, activation);
        }
        let dims = self.windows.dims(x, 1);
        let [rows, columns] = dims.output();
        let windows = x.unfold_windows(dims).reshape(&[dims.batch, rows, columns, self.linear.in_features]);
        self.linear.forward_then(&windows, activation)
    }
}

/// A convolution in which every output sees one channel.
pub struct DepthwiseConvolution<B: Backend> {
    weight: Tensor<B>,
    bias: Option<Tensor<B>>,
    windows: Windows,
}

impl<B: Backend> DepthwiseConvolution<B> {
    /// `[N, height, width, C]` -> `[N, output height, output width, out]`.
    #[track_caller]
    pub fn forward(&self, x: &Tensor<B>) -> Tensor<B> {
        let channels = x.width();
        assert_eq!(self.weight.width() % channels, 0, "{:?} does not fit {:?}", x.shape(), self.weight.shape());
        let dims = self.windows.dims(x, self.weight.width() / channels);
        x.depthwise(&self.weight, self.bias.as_ref(), dims)
    }
}

impl<B: Backend> Weights<'_, B> {
    /// `name.weight` `[out, channels, kernel height, kernel width]` and `name.bias`; a tower's first layer is
    /// [`Role::Patches`].
    ///
    /// # Errors
    /// When the backend cannot hold the weight's type.
    pub fn convolution(
        &self,
        role: Role,
        name: &str,
        channels: usize,
        out_features: usize,
        windows: Windows,
    ) -> Result<Convolution<B>> {
        let shape = [out_features, channels, windows.kernel[0], windows.kernel[1]];
        Ok(Convolution { linear: self.linear_of_shape(role, name, &shape, true)?, windows })
    }

    /// `name.weight` `[out, channels, kernel width]` and `name.bias`: a convolution along the rows of a picture, such as
    /// over time; `windows` are one row high.
    ///
    /// # Errors
    /// When the backend cannot hold the weight's type.
    pub fn convolution_along_rows(
        &self,
        role: Role,
        name: &str,
        channels: usize,
        out_features: usize,
        windows: Windows,
    ) -> Result<Convolution<B>> {
        let shape = [out_features, channels, windows.kernel[1]];
        Ok(Convolution { linear: self.linear_of_shape(role, name, &shape, true)?, windows })
    }

    /// `name.weight` `[out, 1, kernel height, kernel width]` and, unless `has_bias` is false, `name.bias`.
    ///
    /// # Errors
    /// When a tensor is not of a float type.
    pub fn depthwise_convolution(
        &self,
        name: &str,
        out_features: usize,
        windows: Windows,
        has_bias: bool,
    ) -> Result<DepthwiseConvolution<B>> {
        let weight = self.taps(name, out_features, windows)?;
        let bias = if has_bias { Some(self.at(name).values("bias", &[out_features])?) } else { None };
        Ok(DepthwiseConvolution { weight, bias, windows })
    }

    /// A depthwise convolution without bias, `name.weight`, and the batch normalisation `norm` behind it (`weight`,
    /// `bias`, `running_mean`, `running_var`) as one layer.
    ///
    /// # Errors
    /// When a tensor is not of a float type.
    pub fn depthwise_convolution_normalized(
        &self,
        name: &str,
        norm: &str,
        out_features: usize,
        windows: Windows,
        eps: f32,
    ) -> Result<DepthwiseConvolution<B>> {
        let norm = self.at(norm);
        let read = |name: &str| -> Result<Vec<f32>> { Ok(norm.values(name, &[out_features])?.to_vec()) };
        let (gamma, beta) = (read("weight")?, read("bias")?);
        let (mean, variance) = (read("running_mean")?, read("running_var")?);
        let scale: Vec<f32> =
            gamma.iter().zip(variance).map(|(gamma, variance)| gamma / (variance + eps).sqrt()).collect();
        let shift = beta.iter().zip(mean).zip(&scale).map(|((beta, mean), scale)| beta - mean * scale);
        let bias = Tensor::new(self.backend(), &shift.collect::<Vec<_>>(), &[out_features]);
        let scale = Tensor::new(self.backend(), &scale, &[out_features]);
        let weight = self.taps(name, out_features, windows)?.mul_repeated(&scale);
        Ok(DepthwiseConvolution { weight, bias: Some(bias), windows })
    }

    /// The weights of a depthwise convolution by tap, `[taps, out]`: registers run along channels, so these come last.
    fn taps(&self, name: &str, out_features: usize, windows: Windows) -> Result<Tensor<B>> {
        let [height, width] = windows.kernel;
        let published = self.at(name).values("weight", &[out_features, 1, height, width])?.to_vec();
        let taps = height * width;
        let by_tap = (0..taps).flat_map(|tap| published[tap..].iter().step_by(taps).copied());
        Ok(Tensor::new(self.backend(), &by_tap.collect::<Vec<_>>(), &[taps, out_features]))
    }
}
