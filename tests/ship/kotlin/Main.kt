// FOLDER DIGEST PIXELS (width, height, then 0xAARRGGBB as decimal numbers) TYPE: the input's shape, type and values, in lines,
// as if the model took TYPE.

import ai.onnxruntime.OrtEnvironment
import java.io.File
import java.nio.ByteBuffer
import java.nio.FloatBuffer

fun main(arguments: Array<String>) {
    val environment = OrtEnvironment.getEnvironment()
    val (session, manifest) = load(environment, File(arguments[0]), arguments[1])
    val numbers = File(arguments[2]).readText().split(" ").map { it.toInt() }
    manifest.getJSONArray("inputs").getJSONObject(0).put("type", arguments[3])
    val input = prepare(environment, numbers.drop(2).toIntArray(), numbers[0], numbers[1], manifest)
    println(session.model.size)
    println(input.shape.joinToString(" "))
    println(input.type)
    val values = input.values
    println((0 until values.remaining()).joinToString(" ") { if (values is FloatBuffer) "${values.get(it)}" else "${(values as ByteBuffer).get(it)}" })
}
