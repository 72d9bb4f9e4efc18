import ai.onnxruntime.OnnxJavaType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtSession;
import java.nio.ByteBuffer;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.Map;

/**
 * Runs a file once by ONNX Runtime's Java interface, with the kernel library, as docs/kernels.md says.
 *
 * <p>{@code RunByJava MODEL.onnx X Y N C H W}. The library is libqil_deploy_kernels.so, as the loader finds it. X holds
 * the uint8 codes of the input "x", [N, C, H, W]; the codes of the output "y" go to Y. A profile, profile_*.json, names
 * the operators that ran. The options are closed before the run: Java closes the library with them.
 */
public final class RunByJava {
  public static void main(String[] arguments) throws Exception {
    byte[] codes = Files.readAllBytes(Path.of(arguments[1]));
    long[] shape = Arrays.stream(arguments, 3, 7).mapToLong(Long::parseLong).toArray();
    OrtEnvironment environment = OrtEnvironment.getEnvironment();
    try (OrtSession session = createSession(environment, arguments[0])) {
      ByteBuffer buffer = ByteBuffer.allocateDirect(codes.length).put(codes).rewind();
      try (OnnxTensor x = OnnxTensor.createTensor(environment, buffer, shape, OnnxJavaType.UINT8);
          OrtSession.Result results = session.run(Map.of("x", x))) {
        ByteBuffer made = ((OnnxTensor) results.get(0)).getByteBuffer();
        byte[] y = new byte[made.remaining()];
        made.get(y);
        Files.write(Path.of(arguments[2]), y);
      }
    }
  }

  private static OrtSession createSession(OrtEnvironment environment, String model) throws Exception {
    try (OrtSession.SessionOptions options = new OrtSession.SessionOptions()) {
      options.registerCustomOpLibrary("libqil_deploy_kernels.so");
      options.enableProfiling("profile");
      return environment.createSession(model, options);
    }
  }
}
