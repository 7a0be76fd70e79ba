//! `quantization_config` in `config.json`: how a checkpoint has been quantized, if it has.

use crate::config::ModelConfig;
use crate::dtype::TensorDtype;
use crate::error::{CheckpointError, shown};
use halfbyte_quant::QuantType;

/// A bitsandbytes 4-bit quantization, as transformers writes it into `config.json`.
///
/// The block size is not among it: each weight's own quant state has it.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizationConfig {
    /// The codebook: NF4 or FP4, which is what a file that does not say means.
    pub quant_type: QuantType,
    /// Whether the scales are quantized too.
    pub double_quant: bool,
    /// What the matrix products are computed in.
    pub compute_dtype: TensorDtype,
    /// The type under which the packed bytes are stored; they are reinterpreted, never converted.
    pub storage: TensorDtype,
    /// Modules that were left alone, where the file lists them.
    pub skip_modules: Option<Vec<String>>,
}

impl ModelConfig {
    /// How the checkpoint has been quantized; `None` for plain weights.
    ///
    /// # Errors
    /// [`CheckpointError::Unsupported`] for GPTQ, AWQ, 8-bit and other methods, and values of the wrong kind.
    pub fn quantization(&self) -> Result<Option<QuantizationConfig>, CheckpointError> {
        let Some(section) = self.section("quantization_config")? else {
            return Ok(None);
        };
        let four_bit = section.bool_or("load_in_4bit", false)? || section.bool_or("_load_in_4bit", false)?;
        let eight_bit = section.bool_or("load_in_8bit", false)? || section.bool_or("_load_in_8bit", false)?;
        let method = match section.opt_str("quant_method")? {
            Some(method) => method,
            // bitsandbytes configurations were first written without their method.
            None if four_bit || eight_bit => "bitsandbytes",
            None => {
                return Err(section.error(
                    "quant_method",
                    None,
                    "the name of a method, such as \"bitsandbytes\"",
                ));
            }
        };
        if method != "bitsandbytes" {
            return Err(self.refuse(described(method)));
        }
        if !four_bit {
            if eight_bit {
                return Err(self.refuse("bitsandbytes 8-bit (LLM.int8) quantization".to_string()));
            }
            // Both switched off: an unquantized model that carries a leftover configuration.
            return Ok(None);
        }
        let quant_type = match section.str_or("bnb_4bit_quant_type", "fp4")? {
            "nf4" => QuantType::Nf4,
            "fp4" => QuantType::Fp4,
            _ => {
                let found = section.opt("bnb_4bit_quant_type");
                return Err(section.error("bnb_4bit_quant_type", found, "\"nf4\" or \"fp4\""));
            }
        };
        let compute_dtype = section.opt_dtype("bnb_4bit_compute_dtype")?.unwrap_or(TensorDtype::F32);
        if !compute_dtype.is_float() {
            let found = section.opt("bnb_4bit_compute_dtype");
            return Err(section.error("bnb_4bit_compute_dtype", found, "a float type"));
        }
        Ok(Some(QuantizationConfig {
            quant_type,
            double_quant: section.bool_or("bnb_4bit_use_double_quant", false)?,
            compute_dtype,
            storage: section.opt_dtype("bnb_4bit_quant_storage")?.unwrap_or(TensorDtype::U8),
            skip_modules: section
                .opt_str_list("llm_int8_skip_modules")?
                .map(|modules| modules.into_iter().map(str::to_string).collect()),
        }))
    }

    fn refuse(&self, what: String) -> CheckpointError {
        CheckpointError::Unsupported {
            what: format!("{}: {what}", self.file),
            instead: "take the model's original 16-bit checkpoint, which is quantized to 4 bits while it loads, or a bitsandbytes 4-bit one"
                .to_string(),
        }
    }
}

/// A method's name in words.
fn described(method: &str) -> String {
    let words = match method {
        "gptq" => "GPTQ",
        "awq" => "AWQ",
        "compressed-tensors" => "compressed-tensors (llm-compressor)",
        "fp8" | "fbgemm_fp8" => "8-bit float",
        "mxfp4" => "MXFP4",
        "aqlm" => "AQLM",
        "hqq" => "HQQ",
        "eetq" => "EETQ 8-bit",
        "quanto" => "Quanto",
        "torchao" => "torchao",
        "exl2" | "exl3" => "ExLlama",
        "bitnet" => "BitNet",
        other => return format!("quantization by the method \"{}\"", shown(other)),
    };
    format!("{words} quantization (\"{method}\")")
}
